//! Ranges of addresses. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A network and its prefix length; the host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    network: IpAddr,
    length: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a range of addresses such as 10.96.0.0/12");
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let length: u8 = length.parse().map_err(|_| bad())?;
        if u32::from(length) > bits(address) {
            return Err(bad());
        }
        let mask = !host_mask(address, length);
        Ok(Cidr { network: from_number(address, number(address) & mask), length })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

fn bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn host_mask(address: IpAddr, length: u8) -> u128 {
    let host = bits(address) - u32::from(length);
    if host >= 128 { u128::MAX } else { (1 << host) - 1 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn from_number(family: IpAddr, number: u128) -> IpAddr {
    match family {
        // The upper bits of an IPv4 number are zero by construction.
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number & 0xffff_ffff).unwrap_or(0)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

impl Cidr {
    pub fn network(&self) -> IpAddr {
        self.network
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.network.is_ipv4()
            && number(address) & !host_mask(self.network, self.length) == number(self.network)
    }

    /// How many addresses can be given out: not the network's own, nor IPv4's broadcast; at most 2^16 of an IPv6
    /// range, as upstream bounds it.
    pub fn capacity(&self) -> u64 {
        let all = host_mask(self.network, self.length);
        if self.network.is_ipv4() {
            u64::try_from(all.saturating_sub(1)).unwrap_or(0)
        } else {
            u64::try_from(all).unwrap_or(u64::MAX).min(1 << 16)
        }
    }

    /// The address at an offset below [`Cidr::capacity`]; offset 0 is the first usable one.
    pub fn at(&self, offset: u64) -> IpAddr {
        from_number(self.network, number(self.network) + 1 + u128::from(offset))
    }
}

/// Where random allocation begins, so that low offsets stay free for addresses that users choose (KEP-3070):
/// min(max(16, size/16), 256).
pub fn static_band(capacity: u64) -> u64 {
    if capacity <= 16 { 0 } else { (capacity / 16).clamp(16, 256).min(capacity) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let check = |text: &str, capacity: u64, first: &str, inside: &str, outside: &str| {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(cidr.capacity(), capacity);
            assert_eq!(cidr.at(0).to_string(), first);
            assert!(cidr.contains(inside.parse().unwrap()));
            assert!(!cidr.contains(outside.parse().unwrap()));
        };
        check("10.96.0.0/12", 1_048_574, "10.96.0.1", "10.111.255.255", "10.112.0.0");
        check("10.0.0.7/24", 254, "10.0.0.1", "10.0.0.200", "fd00::1");
        check("fd00::/108", 65536, "fd00::1", "fd00::f", "fe00::1");
        assert!("10.0.0.0".parse::<Cidr>().is_err());
        assert!("10.0.0.0/33".parse::<Cidr>().is_err());
    }

    #[test]
    fn the_band_is_bounded() {
        for (capacity, expected) in [(6, 0), (254, 16), (4094, 255), (1_048_574, 256)] {
            assert_eq!(static_band(capacity), expected);
        }
    }
}
