//! An input, read as a list of choices. Reading past its end returns zeroes.

/// The rest of an input.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// Returns true if no byte is left.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes at most `len` bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Takes `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// Takes a byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// Takes a number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(u16::from_le_bytes(self.array())) % bound
    }

    /// Takes a choice among `choices`.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// Takes a number: mostly a small one, sometimes one near a limit, rarely any.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..200 => u64::from(small % 20),
            200..220 => self.one_of(&[
                0x3fff,
                0x4000,
                0x4001,
                1 << 20,
                (1 << 20) + 1,
                1 << 48,
                u64::MAX,
                u64::MAX >> 2,
            ]),
            220..240 => u64::from(u16::from_le_bytes(self.array())),
            _ => u64::from_le_bytes(self.array()),
        }
    }
}
