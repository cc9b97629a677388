//! Which block of pod addresses is whose. Pure; never gives the same block twice.

use std::collections::{HashMap, HashSet};

use keelson_objects::addresses::Cidr;

/// There is no block left in this range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no pod CIDR is left in {0}")]
pub struct Exhausted(pub Cidr);

struct Range {
    cluster: Cidr,
    length: u8,
    used: HashSet<u128>,
    next: u128,
}

impl Range {
    fn size(&self) -> u128 {
        1 << u32::from((self.length - self.cluster.length()).min(64))
    }

    /// The numbers of the blocks that share addresses with `cidr`.
    fn overlapped(&self, cidr: &Cidr) -> Vec<u128> {
        if !self.cluster.overlaps(cidr) {
            return Vec::new();
        }
        let width = if self.cluster.is_ipv4() { 32 } else { 128 };
        let block = 1_u128.checked_shl(u32::from(width - self.length)).unwrap_or(u128::MAX);
        let number = |address| self.cluster.offset(address).map(|offset| offset / block);
        let first = number(cidr.network()).unwrap_or(0);
        let last = number(cidr.last()).unwrap_or(self.size() - 1);
        (first..=last.min(first + self.size())).collect()
    }
}

/// All ranges, and what each node has.
pub struct Allocator {
    ranges: Vec<Range>,
    nodes: HashMap<String, Vec<Cidr>>,
}

impl Allocator {
    /// `clusters` with the length of nodes' blocks; addresses of `reserved` are given to no node.
    #[must_use]
    pub fn new(clusters: impl IntoIterator<Item = (Cidr, u8)>, reserved: &[Cidr]) -> Self {
        let range = |(cluster, length): (Cidr, u8)| {
            let length = length.max(cluster.length());
            let mut range = Range { cluster, length, used: HashSet::new(), next: 0 };
            range.used = reserved.iter().flat_map(|cidr| range.overlapped(cidr)).collect();
            range
        };
        Self { ranges: clusters.into_iter().map(range).collect(), nodes: HashMap::new() }
    }

    /// Notes what a node has already.
    pub fn occupy(&mut self, node: &str, cidrs: &[Cidr]) {
        if self.nodes.get(node).is_some_and(|known| known == cidrs) {
            return;
        }
        self.release(node);
        for range in &mut self.ranges {
            let numbers: Vec<u128> = cidrs.iter().flat_map(|cidr| range.overlapped(cidr)).collect();
            range.used.extend(numbers);
        }
        self.nodes.insert(node.to_owned(), cidrs.to_vec());
    }

    /// A block of each range; the same again for a node that has been given some.
    ///
    /// # Errors
    /// A range is used up; nothing was taken then.
    pub fn allocate(&mut self, node: &str) -> Result<Vec<Cidr>, Exhausted> {
        if let Some(known) = self.nodes.get(node) {
            return Ok(known.clone());
        }
        let mut found = Vec::with_capacity(self.ranges.len());
        for range in &self.ranges {
            let size = range.size();
            let free = (0..size).map(|step| (range.next + step) % size).find(|n| !range.used.contains(n));
            let block = free.and_then(|number| Some((number, range.cluster.subnet(range.length, number)?)));
            found.push(block.ok_or(Exhausted(range.cluster))?);
        }
        let cidrs = found.iter().map(|(_, cidr)| *cidr).collect::<Vec<_>>();
        for (range, (number, _)) in self.ranges.iter_mut().zip(&found) {
            range.used.insert(*number);
            range.next = (number + 1) % range.size();
        }
        self.nodes.insert(node.to_owned(), cidrs.clone());
        Ok(cidrs)
    }

    /// The node is gone.
    pub fn release(&mut self, node: &str) {
        let cidrs = self.nodes.remove(node).unwrap_or_default();
        for range in &mut self.ranges {
            for number in cidrs.iter().flat_map(|cidr| range.overlapped(cidr)).collect::<Vec<_>>() {
                range.used.remove(&number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn text(result: Result<Vec<Cidr>, Exhausted>) -> String {
        match result {
            Ok(cidrs) => cidrs.iter().map(Cidr::to_string).collect::<Vec<_>>().join(","),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn never_twice() {
        let mut all = Allocator::new([(cidr("10.244.0.0/22"), 24)], &[cidr("10.244.1.0/28")]);
        all.occupy("old", &[cidr("10.244.0.0/24")]);
        assert_eq!(text(all.allocate("a")), "10.244.2.0/24");
        assert_eq!(text(all.allocate("a")), "10.244.2.0/24");
        assert_eq!(text(all.allocate("b")), "10.244.3.0/24");
        assert_eq!(text(all.allocate("c")), "no pod CIDR is left in 10.244.0.0/22");
        all.release("old");
        assert_eq!(text(all.allocate("c")), "10.244.0.0/24");
        all.release("b");
        all.release("b");
        // Another size than ours, over two blocks of which one is reserved.
        all.occupy("d", &[cidr("10.244.2.0/23")]);
        assert_eq!(text(all.allocate("e")), "no pod CIDR is left in 10.244.0.0/22");
    }

    #[test]
    fn two_families() {
        let mut all = Allocator::new([(cidr("10.0.0.0/16"), 24), (cidr("fd00::/48"), 64)], &[]);
        assert_eq!(text(all.allocate("a")), "10.0.0.0/24,fd00::/64");
        assert_eq!(text(all.allocate("b")), "10.0.1.0/24,fd00:0:0:1::/64");
        all.release("a");
        assert_eq!(text(all.allocate("c")), "10.0.2.0/24,fd00:0:0:2::/64");
    }
}
