//! Generated names and the alphabet they are made of, which has no vowels (no words) and no look-alikes.

const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// A name is a DNS label, of which the suffix takes its part.
const MAX_BASE_LENGTH: usize = 63 - SUFFIX_LENGTH;

/// A name from `generateName`: the base, cut to 58 bytes, and five letters that `random` decides.
#[must_use]
pub fn generate_name(base: &str, random: u64) -> String {
    let mut end = base.len().min(MAX_BASE_LENGTH);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    name.push_str(&suffix(random));
    name
}

/// Five letters of the alphabet; evenly distributed for an even `random`.
#[must_use]
pub fn suffix(mut random: u64) -> String {
    let letters = ALPHABET.len() as u64;
    let letter = |_| {
        let index = (random % letters) as usize;
        random /= letters;
        char::from(ALPHABET[index])
    };
    (0..SUFFIX_LENGTH).map(letter).collect()
}

/// Each character replaced by one of the alphabet: how hashes become parts of names.
#[must_use]
pub fn safe_encode(text: &str) -> String {
    text.chars().map(|c| char::from(ALPHABET[c as usize % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names() {
        assert_eq!(suffix(0), "bbbbb");
        assert_eq!(suffix(1 + 27 * 26), "c9bbb");
        assert_eq!(generate_name("web-", 0), "web-bbbbb");
        let name = generate_name(&"x".repeat(80), u64::MAX);
        assert_eq!(name.len(), 63);
        assert!(generate_name(&"é".repeat(40), 1).len() <= 63);
    }

    #[test]
    fn encoding_is_upstreams() {
        // The ten characters that pod-template-hashes are known to consist of.
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
    }
}
