//! Sets of completion indexes in the form `1,3-5,7`, kept as ranges: a Job may have a hundred thousand. Pure.

use std::fmt;

/// Sorted ranges, both ends included, that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads what [`fmt::Display`] writes, without what is not below `completions`. What cannot be read is left out.
    #[must_use]
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut all = Self::default();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
                let last = last.min(completions - 1);
                if first >= 0 && first <= last {
                    all.0.push((first, last));
                }
            }
        }
        all.normalize();
        all
    }

    fn normalize(&mut self) {
        self.0.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::with_capacity(self.0.len());
        for (first, last) in self.0.drain(..) {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        self.0 = merged;
    }

    pub fn extend(&mut self, more: impl IntoIterator<Item = i32>) {
        self.0.extend(more.into_iter().map(|index| (index, index)));
        self.normalize();
    }

    #[must_use]
    pub fn contains(&self, index: i32) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= index);
        after > 0 && self.0[after - 1].1 >= index
    }

    #[must_use]
    pub fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = i32> {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (first, last)) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        #[track_caller]
        fn check(text: &str, add: &[i32], expected: &str) {
            let mut indexes = Indexes::parse(text, 10);
            indexes.extend(add.iter().copied());
            assert_eq!(indexes.to_string(), expected);
            assert_eq!(usize::try_from(indexes.len()).unwrap(), indexes.iter().count());
            assert!(indexes.iter().all(|index| indexes.contains(index)));
        }
        check("", &[], "");
        check("", &[3, 1], "1,3");
        check("1,3-5,7", &[], "1,3-5,7");
        check("1,3-5,7", &[6, 2], "1-7");
        check("0,1", &[], "0,1");
        check("8-12", &[], "8,9");
        check("12,x,5-4", &[], "");
        assert!(!Indexes::parse("1,3-5", 10).contains(2) && !Indexes::parse("3", 10).contains(0));
    }
}
