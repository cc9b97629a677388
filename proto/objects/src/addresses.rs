//! IP addresses and CIDR blocks: validation with upstream's messages, and the arithmetic that allocators need.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What is wrong with a new field's IP address: it must be valid and in canonical form.
#[must_use]
pub fn is_ip(value: &str) -> Vec<String> {
    let mut errors = is_ip_in_legacy_field(value);
    if errors.is_empty()
        && let Ok(address) = value.parse::<IpAddr>()
        && address.to_string() != value
    {
        errors.push(format!("must be in canonical form (\"{address}\")"));
    }
    errors
}

/// What is wrong with the IP address of a field that is older than the rule on canonical form.
#[must_use]
pub fn is_ip_in_legacy_field(value: &str) -> Vec<String> {
    match value.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            vec!["must not be an IPv4-mapped IPv6 address".to_owned()]
        }
        Ok(_) => Vec::new(),
        Err(_) if without_leading_zeros(value).is_some_and(|value| value.parse::<Ipv4Addr>().is_ok()) => {
            vec!["must not have leading 0s".to_owned()]
        }
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// What is wrong with a CIDR block, in a new field.
#[must_use]
pub fn is_cidr(value: &str) -> Vec<String> {
    let mut errors = is_cidr_in_legacy_field(value);
    if errors.is_empty()
        && let Ok(cidr) = value.parse::<Cidr>()
        && cidr.to_string() != value
    {
        errors.push(format!("must be in canonical form (\"{cidr}\")"));
    }
    errors
}

/// What is wrong with the CIDR block of a field that is older than the rule on canonical form.
#[must_use]
pub fn is_cidr_in_legacy_field(value: &str) -> Vec<String> {
    let invalid = || vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()];
    let Some((address, length)) = value.split_once('/') else { return invalid() };
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let plain = without_leading_zeros(address).unwrap_or_else(|| address.to_owned());
    let (Ok(parsed), true, Ok(bits)) = (plain.parse::<IpAddr>(), digits, length.parse::<u8>()) else {
        return invalid();
    };
    if bits > width(parsed) {
        return invalid();
    }
    if plain != address || (length.len() > 1 && length.starts_with('0')) {
        return vec!["must not have leading 0s in IP or prefix length".to_owned()];
    }
    if matches!(parsed, IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
        return vec!["must not have an IPv4-mapped IPv6 address".to_owned()];
    }
    if masked(parsed, bits) != parsed {
        return vec!["must not have bits set beyond the prefix length".to_owned()];
    }
    Vec::new()
}

/// A dotted address whose numbers have lost their leading zeros; `None` for anything else.
fn without_leading_zeros(value: &str) -> Option<String> {
    let octets: Vec<&str> = value.split('.').collect();
    if octets.len() != 4 || !octets.iter().all(|octet| octet.parse::<u8>().is_ok() && !octet.starts_with('+'))
    {
        return None;
    }
    let plain =
        octets.iter().map(|octet| octet.parse::<u8>().map_or_else(|_| String::new(), |n| n.to_string()));
    Some(plain.collect::<Vec<_>>().join("."))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_bits(bits: u128, is_ipv4: bool) -> IpAddr {
    match u32::try_from(bits) {
        Ok(bits) if is_ipv4 => IpAddr::V4(Ipv4Addr::from_bits(bits)),
        _ => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    let host_bits = u32::from(width(address) - length);
    let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
    from_bits(to_bits(address) & mask, address.is_ipv4())
}

/// The text is no CIDR block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct CidrError(String);

/// A block of addresses; host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    network: IpAddr,
    length: u8,
}

impl Cidr {
    /// The block around an address; `None` when the length exceeds the address's.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        (length <= width(address)).then(|| Self { network: masked(address, length), length })
    }

    #[must_use]
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// The length of the prefix, in bits.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.network.is_ipv4()
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && masked(address, self.length) == self.network
    }

    /// Whether the blocks share addresses.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// How many addresses there are (all of IPv6 counts one less).
    #[must_use]
    pub fn size(&self) -> u128 {
        1_u128.checked_shl(u32::from(width(self.network) - self.length)).unwrap_or(u128::MAX)
    }

    /// The address at an offset from the network's.
    #[must_use]
    pub fn nth(&self, offset: u128) -> Option<IpAddr> {
        (offset < self.size()).then(|| from_bits(to_bits(self.network) + offset, self.is_ipv4()))
    }

    /// The offset of an address, if it is in here.
    #[must_use]
    pub fn offset(&self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| to_bits(address) - to_bits(self.network))
    }

    /// The last address; the broadcast address, for IPv4.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        let host = self.size().wrapping_sub(1);
        from_bits(
            to_bits(self.network) | if self.length == 0 && !self.is_ipv4() { u128::MAX } else { host },
            self.is_ipv4(),
        )
    }

    /// The block of a longer prefix at an index, as pod CIDRs are cut from the cluster's.
    #[must_use]
    pub fn subnet(&self, length: u8, index: u128) -> Option<Self> {
        if length < self.length || length > width(self.network) {
            return None;
        }
        let count = 1_u128.checked_shl(u32::from(length - self.length)).unwrap_or(u128::MAX);
        let shift = u32::from(width(self.network) - length);
        let offset = index.checked_shl(shift).unwrap_or(0);
        (index < count)
            .then(|| Self { network: from_bits(to_bits(self.network) | offset, self.is_ipv4()), length })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// Takes any address of the block, as `net.ParseCIDR`.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            let digits = length.bytes().all(|byte| byte.is_ascii_digit());
            Self::new(address.parse().ok()?, length.parse().ok().filter(|_| digits)?)
        };
        parse().ok_or_else(|| CidrError(text.to_owned()))
    }
}

/// `host:port`, with brackets around IPv6.
#[must_use]
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validation() {
        #[track_caller]
        fn check(rule: fn(&str) -> Vec<String>, value: &str, expected: &str) {
            assert_eq!(rule(value).join("; "), expected, "{value}");
        }
        check(is_ip, "10.9.8.7", "");
        check(is_ip, "::1", "");
        check(is_ip, "FE80::1", "must be in canonical form (\"fe80::1\")");
        check(is_ip_in_legacy_field, "FE80::1", "");
        check(is_ip, "010.1.1.1", "must not have leading 0s");
        check(is_ip, "::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address");
        check(is_ip, "1.2.3", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
        check(is_cidr, "10.0.0.0/8", "");
        check(is_cidr, "10.0.0.1/8", "must not have bits set beyond the prefix length");
        check(is_cidr, "010.0.0.0/8", "must not have leading 0s in IP or prefix length");
        check(is_cidr, "10.0.0.0/08", "must not have leading 0s in IP or prefix length");
        check(is_cidr, "FD00::/8", "must be in canonical form (\"fd00::/8\")");
        for value in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "x/8", "::/129"] {
            check(is_cidr, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        }
    }

    #[test]
    fn blocks() {
        let block = |text: &str| text.parse::<Cidr>().unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let services = block("10.96.0.1/12");
        assert_eq!(services.to_string(), "10.96.0.0/12");
        assert_eq!(services.nth(10), Some(address("10.96.0.10")));
        assert_eq!(services.offset(address("10.96.1.0")), Some(256));
        assert_eq!(services.last(), address("10.111.255.255"));
        assert!(services.contains(address("10.111.1.1")) && !services.contains(address("10.112.0.0")));
        assert!(!services.contains(address("::1")));
        assert_eq!((services.size(), services.nth(1 << 20)), (1 << 20, None));
        assert_eq!(block("10.244.0.0/16").subnet(24, 3).unwrap().to_string(), "10.244.3.0/24");
        assert_eq!(block("10.244.0.0/16").subnet(24, 256), None);
        assert_eq!(block("10.244.0.0/16").subnet(8, 0), None);
        assert_eq!(block("fd00::/48").subnet(64, 1).unwrap().to_string(), "fd00:0:0:1::/64");
        assert_eq!(block("::/0").last(), address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
        assert_eq!(block("0.0.0.0/0").last(), address("255.255.255.255"));
        assert!(block("10.0.0.0/8").overlaps(&block("10.1.0.0/16")));
        assert!(!block("10.0.0.0/8").overlaps(&block("11.0.0.0/8")));
        assert!("10.0.0.0/x".parse::<Cidr>().is_err());
        assert_eq!(join_host_port("::1", 80), "[::1]:80");
    }
}
