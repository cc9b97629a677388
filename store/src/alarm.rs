//! Alarms: which member has which trouble, the same on every member, since they are raised and disarmed through the log.

use std::collections::BTreeSet;

use keelson_proto::etcd::etcdserverpb::{AlarmMember, AlarmType};

/// Where alarms lie in the tree.
pub const ALARM_PREFIX: u8 = b'a';

pub fn alarm_key(alarm: &AlarmMember) -> Vec<u8> {
    [&[ALARM_PREFIX][..], &alarm.member_id.to_be_bytes(), &alarm.alarm.to_be_bytes()].concat()
}

/// What [`alarm_key`] made.
pub fn parse_alarm_key(key: &[u8]) -> Option<AlarmMember> {
    let (member, alarm) = key.strip_prefix(&[ALARM_PREFIX])?.split_at_checked(8)?;
    Some(AlarmMember {
        member_id: u64::from_be_bytes(member.try_into().ok()?),
        alarm: i32::from_be_bytes(alarm.try_into().ok()?),
    })
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Alarms(BTreeSet<(u64, i32)>);

impl Alarms {
    /// False: it was raised already.
    pub fn raise(&mut self, alarm: &AlarmMember) -> bool {
        self.0.insert((alarm.member_id, alarm.alarm))
    }

    /// False: there was none.
    pub fn disarm(&mut self, alarm: &AlarmMember) -> bool {
        self.0.remove(&(alarm.member_id, alarm.alarm))
    }

    pub fn has(&self, member: u64, alarm: AlarmType) -> bool {
        self.0.contains(&(member, alarm as i32))
    }

    /// Whether any member has it.
    pub fn any(&self, alarm: AlarmType) -> bool {
        self.0.iter().any(|(_, raised)| *raised == alarm as i32)
    }

    pub fn iter(&self) -> impl Iterator<Item = AlarmMember> {
        self.0.iter().map(|(member_id, alarm)| AlarmMember { member_id: *member_id, alarm: *alarm })
    }

    /// All, or those of one kind.
    pub fn list(&self, kind: AlarmType) -> Vec<AlarmMember> {
        self.iter().filter(|alarm| kind == AlarmType::None || alarm.alarm == kind as i32).collect()
    }
}
