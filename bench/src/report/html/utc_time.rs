//! A time in UTC, for people.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// `2026-11-25 06:37 UTC`
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct UtcTime {
    minutes: u64,
}

impl UtcTime {
    /// A clock before 1970 counts as 1970.
    pub(super) fn of(time: SystemTime) -> Self {
        Self { minutes: time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 60) }
    }

    /// Returns year, month and day of the Gregorian calendar. The calculation starts years in March, so that
    /// a leap day is the last day of a year.
    fn date(self) -> (u64, u64, u64) {
        let days = self.minutes / (24 * 60) + 719_468; // since the first of March of the year 0
        let (era, day) = (days / 146_097, days % 146_097); // 400 years
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        (era * 400 + year + next, month, day)
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        let (hour, minute) = (self.minutes / 60 % 24, self.minutes % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn seconds_become_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (68_169_599, "1972-02-28 23:59 UTC"),
            (68_169_600, "1972-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_795_588_620, "2026-11-25 06:37 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(UtcTime::of(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), text);
        }
    }
}
