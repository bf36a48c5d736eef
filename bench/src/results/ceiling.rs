//! A ceiling: what the machine does at best by other means.

/// One kind of ceiling, measured in one repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ceiling {
    pub(crate) kind: &'static str,
    pub(crate) gb_per_s: Option<f64>,
    pub(crate) p50_us: Option<f64>,
}

impl Ceiling {
    pub(crate) fn rate(kind: &'static str, gb_per_s: f64) -> Self {
        Self { kind, gb_per_s: Some(gb_per_s), p50_us: None }
    }

    pub(crate) fn latency(kind: &'static str, p50_us: f64) -> Self {
        Self { kind, gb_per_s: None, p50_us: Some(p50_us) }
    }

    /// Returns the ceiling of whole round trips, given that of half ones.
    pub(crate) fn there_and_back(self) -> Self {
        Self { p50_us: self.p50_us.map(|half_us| 2.0 * half_us), ..self }
    }

    /// Returns the better of two measurements of the same kind.
    pub(crate) fn best(self, other: Self) -> Self {
        let better = match (self.gb_per_s.zip(other.gb_per_s), self.p50_us.zip(other.p50_us)) {
            (Some((a, b)), _) => a >= b,
            (None, Some((a, b))) => a <= b,
            (None, None) => true,
        };
        if better { self } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_higher_rate_or_the_lower_latency() {
        let (slow, fast) = (Ceiling::rate("socket", 1.0), Ceiling::rate("socket", 2.0));
        assert_eq!((slow.best(fast), fast.best(slow)), (fast, fast));
        let (near, far) = (Ceiling::latency("socket", 5.0), Ceiling::latency("socket", 50.0));
        assert_eq!((near.best(far), far.best(near)), (near, near));
        assert_eq!((near.there_and_back().p50_us, fast.there_and_back()), (Some(10.0), fast));
    }
}
