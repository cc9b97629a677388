//! Lines of a container's log as runtimes write them, and what of them a reader asked for. Pure.

use jiff::Timestamp;

/// `<time> <stream> <tags> <text>`; a line without its last newline is not complete yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stream: &'a str,
    /// Whether the text goes on in the next line.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Reads a line, its newline taken off.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = std::str::from_utf8(fields.next()?).ok()?;
    let tags = fields.next()?;
    let partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
    Some(Line { time, stream, partial, text: fields.next().unwrap_or_default() })
}

/// What a reader wants of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail: Option<u64>,
    pub limit: Option<u64>,
    pub since: Option<Timestamp>,
    pub stream: Option<&'static str>,
}

/// Turns lines into what the reader sees; remembers whether it is within a line.
#[derive(Debug)]
pub struct Filter {
    options: Options,
    sent: u64,
    continued: bool,
}

impl Filter {
    pub fn new(options: Options) -> Self {
        Self { options, sent: 0, continued: false }
    }

    /// Adds what the reader sees of a line; false once the limit is reached.
    pub fn push(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(line) = parse(line) else { return true };
        if self.options.stream.is_some_and(|stream| stream != line.stream) {
            return true;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return true;
        }
        let before = out.len();
        if self.options.timestamps && !self.continued {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.continued = line.partial;
        self.sent += u64::try_from(out.len() - before).unwrap_or(u64::MAX);
        if let Some(limit) = self.options.limit
            && self.sent >= limit
        {
            let excess = usize::try_from(self.sent - limit).unwrap_or(usize::MAX);
            out.truncate(out.len().saturating_sub(excess));
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[&str] = &[
        "2026-01-01T00:00:01.000000001Z stdout F one",
        "2026-01-01T00:00:02Z stderr P tw",
        "2026-01-01T00:00:03Z stderr F o",
        "garbage",
        "2026-01-01T00:00:04Z stdout F ",
    ];

    #[test]
    fn filters() {
        let check = |options: Options, expected: &str| {
            let (mut filter, mut out) = (Filter::new(options), Vec::new());
            for line in LOG {
                if !filter.push(line.as_bytes(), &mut out) {
                    break;
                }
            }
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(Options::default(), "one\ntwo\n\n");
        check(
            Options { timestamps: true, ..Options::default() },
            "2026-01-01T00:00:01.000000001Z one\n2026-01-01T00:00:02Z two\n2026-01-01T00:00:04Z \n",
        );
        check(Options { limit: Some(5), ..Options::default() }, "one\nt");
        check(Options { stream: Some("stderr"), ..Options::default() }, "two\n");
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        check(Options { since, ..Options::default() }, "o\n\n");
    }
}
