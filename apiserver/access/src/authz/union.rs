//! Several authorizers as one: the first that allows or denies decides; reasons of those without an
//! opinion are kept for the refusal. Members of `system:masters` are allowed before all others.

use std::sync::Arc;

use super::{Attributes, Authorizer, Decision, Reason, ResourceRule, Rules};
use crate::authz::NonResourceRule;
use crate::user::{MASTERS, UserInfo};

/// `--authorization-mode`, in its order.
pub struct Union(Vec<Arc<dyn Authorizer>>);

impl Union {
    #[must_use]
    pub fn new(authorizers: Vec<Arc<dyn Authorizer>>) -> Self {
        Self(authorizers)
    }
}

impl Authorizer for Union {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group(MASTERS) {
            return Decision::Allow(Reason::NONE);
        }
        let mut reasons: Vec<Reason> = Vec::new();
        for authorizer in &self.0 {
            match authorizer.authorize(attributes) {
                Decision::NoOpinion(reason) if reason.as_str().is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(match reasons.len() {
            0 => Reason::NONE,
            1 => reasons.remove(0),
            _ => {
                let all: Vec<&str> = reasons.iter().map(Reason::as_str).collect();
                Reason::Shared(all.join("\n").into())
            }
        })
    }

    fn rules(&self, user: &UserInfo, namespace: &str, rules: &mut Rules) {
        if user.in_group(MASTERS) {
            let all = || vec!["*".to_owned()];
            rules.resource.push(ResourceRule {
                verbs: all(),
                api_groups: all(),
                resources: all(),
                resource_names: Vec::new(),
            });
            rules.non_resource.push(NonResourceRule { verbs: all(), non_resource_urls: all() });
        }
        for authorizer in &self.0 {
            authorizer.rules(user, namespace, rules);
        }
    }
}

/// `AlwaysAllow` and `AlwaysDeny`.
pub struct Always(pub bool);

impl Authorizer for Always {
    fn authorize(&self, _attributes: &Attributes<'_>) -> Decision {
        if self.0 {
            Decision::Allow(Reason::NONE)
        } else {
            Decision::NoOpinion(Reason::Static("Everything is forbidden."))
        }
    }

    fn rules(&self, _user: &UserInfo, _namespace: &str, rules: &mut Rules) {
        if self.0 {
            let all = || vec!["*".to_owned()];
            rules.resource.push(ResourceRule {
                verbs: all(),
                api_groups: all(),
                resources: all(),
                resource_names: Vec::new(),
            });
            rules.non_resource.push(NonResourceRule { verbs: all(), non_resource_urls: all() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Says(Decision);

    impl Authorizer for Says {
        fn authorize(&self, _attributes: &Attributes<'_>) -> Decision {
            self.0.clone()
        }

        fn rules(&self, _user: &UserInfo, _namespace: &str, _rules: &mut Rules) {}
    }

    #[test]
    fn the_first_opinion_decides() {
        let check = |groups: &[&str], decisions: Vec<Decision>, expected: Decision| {
            let says = decisions.into_iter().map(|decision| Arc::new(Says(decision)) as Arc<dyn Authorizer>);
            let union = Union::new(says.collect());
            let user = UserInfo::new("x", groups);
            assert_eq!(union.authorize(&Attributes::of(&user)), expected);
        };
        let no = |reason: &'static str| Decision::NoOpinion(Reason::Static(reason));
        let allow = Decision::Allow(Reason::Static("yes"));
        let deny = Decision::Deny(Reason::Static("never"));
        check(&[], vec![no("a"), allow.clone()], allow.clone());
        check(&[], vec![no("a"), deny.clone(), allow], deny.clone());
        check(&[], vec![no("a"), no("")], no("a"));
        check(&[], vec![no("a"), no("b")], Decision::NoOpinion(Reason::Shared("a\nb".into())));
        check(&[], vec![], no(""));
        check(&[MASTERS], vec![deny], Decision::Allow(Reason::NONE));
    }
}
