//! When a CronJob is due: cron patterns in a time zone, macros, and `@every <duration>`. Pure.

use std::str::FromStr as _;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use keelson_objects::times;

/// More missed starts than this are told of.
const MANY: i64 = 100;

#[derive(Debug)]
pub enum Schedule {
    Cron(Box<Cron>, TimeZone),
    Every(SignedDuration),
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Nothing,
    At { time: Timestamp, many_missed: bool },
}

impl Schedule {
    /// # Errors
    /// The text is no schedule.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        if let Some(every) = text.strip_prefix("@every ") {
            let period: SignedDuration =
                every.trim().parse().map_err(|error: jiff::Error| error.to_string())?;
            let seconds = SignedDuration::from_secs(period.as_secs().max(1));
            return Ok(Self::Every(seconds));
        }
        let pattern = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            pattern => pattern,
        };
        let count = pattern.split_whitespace().count();
        if count != 5 {
            return Err(format!("expected exactly 5 fields, found {count}: {pattern}"));
        }
        let cron = Cron::from_str(&pattern.replace('?', "*")).map_err(|error| error.to_string())?;
        Ok(Self::Cron(Box::new(cron), zone))
    }

    /// The first time after this one. `None`: never, as on the 31st of February.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(period) => times::truncate(after).checked_add(*period).ok(),
            Self::Cron(cron, zone) => {
                let next = cron.find_next_occurrence(&after.to_zoned(zone.clone()), false).ok()?;
                Some(next.timestamp())
            }
        }
    }

    /// The last time up to `now`, given one at or before it.
    fn last(&self, known: Timestamp, now: Timestamp) -> Timestamp {
        match self {
            Self::Every(period) => {
                let steps = times::between(known, now).as_secs() / period.as_secs().max(1);
                times::plus_seconds(known, steps * period.as_secs())
            }
            Self::Cron(cron, zone) => cron
                .find_previous_occurrence(&now.to_zoned(zone.clone()), true)
                .map_or(known, |time| time.timestamp().max(known)),
        }
    }

    /// The latest time after `earliest` that has come.
    #[must_use]
    pub fn due(&self, earliest: Timestamp, now: Timestamp) -> Due {
        let Some(first) = self.next(earliest).filter(|first| *first <= now) else { return Due::Nothing };
        let Some(second) = self.next(first).filter(|second| *second <= now) else {
            return Due::At { time: first, many_missed: false };
        };
        // An estimate, as upstream's: gaps need not be the same.
        let missed =
            times::between(first, now).as_secs() / times::between(first, second).as_secs().max(1) + 1;
        Due::At { time: self.last(first, now), many_missed: missed > MANY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        times::parse(&format!("2026-{text}Z")).unwrap()
    }

    fn schedule(text: &str, zone: &str) -> Schedule {
        Schedule::parse(text, TimeZone::get(zone).unwrap()).unwrap()
    }

    #[test]
    fn following_times() {
        #[track_caller]
        fn check(text: &str, zone: &str, after: &str, expected: Option<&str>) {
            assert_eq!(schedule(text, zone).next(time(after)), expected.map(time));
        }
        check("*/5 * * * *", "UTC", "11-20T12:00:00", Some("11-20T12:05:00"));
        check("@hourly", "UTC", "11-20T12:00:01", Some("11-20T13:00:00"));
        check("0 9 * * *", "Europe/Berlin", "11-20T12:00:00", Some("11-21T08:00:00"));
        check("0 9 * * *", "Europe/Berlin", "07-20T12:00:00", Some("07-21T07:00:00"));
        check("0 0 13 * FRI", "UTC", "11-20T12:00:00", Some("11-27T00:00:00"));
        check("0 0 31 2 *", "UTC", "11-20T12:00:00", None);
        check("@every 1h30m", "UTC", "11-20T12:00:00", Some("11-20T13:30:00"));
        assert!(Schedule::parse("* * * *", TimeZone::UTC).is_err());
        assert!(Schedule::parse("@every x", TimeZone::UTC).is_err());
    }

    #[test]
    fn what_is_due() {
        #[track_caller]
        fn check(text: &str, earliest: &str, now: &str, expected: Option<(&str, bool)>) {
            let expected =
                expected.map_or(Due::Nothing, |(at, many_missed)| Due::At { time: time(at), many_missed });
            assert_eq!(schedule(text, "UTC").due(time(earliest), time(now)), expected);
        }
        check("0 * * * *", "11-20T12:00:00", "11-20T12:59:59", None);
        check("0 * * * *", "11-20T12:00:00", "11-20T13:00:00", Some(("11-20T13:00:00", false)));
        check("0 * * * *", "11-20T10:30:00", "11-20T13:20:00", Some(("11-20T13:00:00", false)));
        check("* * * * *", "11-20T10:00:00", "11-20T13:20:30", Some(("11-20T13:20:00", true)));
        check("0 9 * * MON-FRI", "11-16T09:00:00", "11-22T12:00:00", Some(("11-20T09:00:00", false)));
        check("@every 2m", "11-20T12:00:00", "11-20T12:05:30", Some(("11-20T12:04:00", false)));
        check("0 0 31 2 *", "11-20T12:00:00", "11-20T12:05:30", None);
    }
}
