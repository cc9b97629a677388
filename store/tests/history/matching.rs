//! Which call explains which revision, where several could.

use std::collections::{BTreeMap, BTreeSet};

/// Gives each of the `wanted` one of its own among those that it could have, along paths on which what is taken moves
/// on (Kuhn 1955). Returns all that are taken.
///
/// # Errors
/// The first that has to go without.
pub fn assign(wanted: &[Vec<usize>]) -> Result<BTreeSet<usize>, usize> {
    let mut holders = BTreeMap::new();
    for place in 0..wanted.len() {
        if !find(place, wanted, &mut holders, &mut BTreeSet::new()) {
            return Err(place);
        }
    }
    Ok(holders.into_keys().collect())
}

fn find(
    place: usize,
    wanted: &[Vec<usize>],
    holders: &mut BTreeMap<usize, usize>,
    tried: &mut BTreeSet<usize>,
) -> bool {
    for candidate in &wanted[place] {
        if !tried.insert(*candidate) {
            continue;
        }
        let holder = holders.get(candidate).copied();
        if holder.is_none_or(|holder| find(holder, wanted, holders, tried)) {
            holders.insert(*candidate, place);
            return true;
        }
    }
    false
}

#[test]
fn what_is_taken_moves_on() {
    let check = |wanted: &[&[usize]], expected: Result<&[usize], usize>| {
        let wanted: Vec<Vec<usize>> = wanted.iter().map(|could| could.to_vec()).collect();
        assert_eq!(assign(&wanted), expected.map(|taken| taken.iter().copied().collect()), "{wanted:?}");
    };
    check(&[], Ok(&[]));
    check(&[&[1, 2], &[1]], Ok(&[1, 2]));
    check(&[&[1, 2], &[1, 3], &[1]], Ok(&[1, 2, 3]));
    check(&[&[1], &[1]], Err(1));
    check(&[&[1, 2], &[1, 2], &[2, 1]], Err(2));
    check(&[&[]], Err(0));
}
