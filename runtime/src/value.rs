//! Values of tasks: serde types, whose `Data` stays in its buffers.
//!
//! Invariant: a value is bytes and frames, and the frames are in the order of their [`Data`] in the bytes. So
//! substituting values into others keeps the frames in order.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use towline::Buffer;

use crate::error::{Error, ErrorKind, Result};
use crate::protocol::Key;

/// A [`Buffer`] inside an argument or a result. It can be a field of any serde type. It travels beside the
/// serialized bytes as a frame, in its own kind of memory, with the copies that the path promises.
///
/// It can be serialized only by this runtime: any other serializer (JSON, say) fails.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use towline_runtime::Data;
///
/// #[derive(Serialize, Deserialize)]
/// struct Block {
///     rows: usize,
///     columns: usize,
///     numbers: Data,
/// }
///
/// let block = Block { rows: 2, columns: 1, numbers: Data::from(vec![1, 2]) };
/// assert_eq!(block.numbers.as_slice(), Some(&[1, 2][..]));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Data(Buffer);

impl Data {
    /// The bytes, if the CPU can read them: see [`Buffer::as_slice`].
    pub fn as_slice(&self) -> Option<&[u8]> {
        self.0.as_slice()
    }

    /// The buffer.
    pub const fn buffer(&self) -> &Buffer {
        &self.0
    }

    /// The buffer.
    pub fn into_buffer(self) -> Buffer {
        self.0
    }
}

impl<T: Into<Buffer>> From<T> for Data {
    fn from(buffer: T) -> Self {
        Self(buffer.into())
    }
}

/// A value as it is stored and sent. Clones share its memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Value {
    pub(crate) bytes: Bytes,
    pub(crate) frames: Vec<Buffer>,
}

impl Value {
    pub(crate) fn of<T: Serialize>(value: &T) -> Result<Self> {
        let (bytes, encoding) = encode(value, false)?;
        Ok(Self { bytes: bytes.into(), frames: encoding.frames })
    }

    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        decode(&self.bytes, self.frames.iter().cloned().collect())
    }

    /// Its size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64 + self.frames.iter().map(|frame| frame.len() as u64).sum::<u64>()
    }
}

/// Serialized arguments, with placeholders for the values of `inputs`.
#[derive(Debug)]
pub(crate) struct EncodedArguments {
    pub(crate) bytes: Vec<u8>,
    pub(crate) placeholders: Vec<Placeholder>,
    pub(crate) inputs: Vec<Key>,
}

/// The position of an input's value in the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placeholder {
    /// Bytes since the last placeholder.
    pub(crate) after: u32,
    /// The index of the input.
    pub(crate) input: u32,
}

impl EncodedArguments {
    pub(crate) fn of<T: Serialize>(arguments: &T) -> Result<Self> {
        let (bytes, encoding) = encode(arguments, true)?;
        let mut encoded =
            Self { bytes, placeholders: Vec::with_capacity(encoding.placeholders.len()), inputs: Vec::new() };
        let mut last = 0;
        let mut numbers = rustc_hash::FxHashMap::default();
        for (at, key) in encoding.placeholders {
            let input = *numbers.entry(key).or_insert_with(|| {
                encoded.inputs.push(key);
                encoded.inputs.len() as u32 - 1
            });
            encoded.placeholders.push(Placeholder { after: (at - last) as u32, input });
            last = at;
        }
        Ok(encoded)
    }
}

/// Substitutes the inputs' values for the placeholders. An input may stand in many placeholders: the values
/// add at most `bytes_max` bytes to the arguments.
pub(crate) fn substitute(
    bytes: &[u8],
    placeholders: &[Placeholder],
    inputs: &[Value],
    bytes_max: u64,
) -> Result<Value> {
    if let ([], []) = (placeholders, inputs) {
        return Ok(Value { bytes: Bytes::copy_from_slice(bytes), frames: Vec::new() });
    }
    let wrong = || Error::new(ErrorKind::Invalid, "a placeholder points outside the arguments");
    let mut whole = Vec::with_capacity(bytes.len());
    let mut frames = Vec::new();
    let mut rest = bytes;
    let mut substituted_bytes = 0u64;
    for placeholder in placeholders {
        let (before, after) = rest.split_at_checked(placeholder.after as usize).ok_or_else(wrong)?;
        let value = inputs.get(placeholder.input as usize).ok_or_else(wrong)?;
        let value_bytes = value.bytes.len() + value.frames.len() * size_of::<Buffer>();
        substituted_bytes = substituted_bytes.saturating_add(value_bytes as u64);
        if substituted_bytes > bytes_max {
            let why = format!("the arguments take more than {bytes_max} bytes with all values substituted");
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        whole.extend_from_slice(before);
        whole.extend_from_slice(&value.bytes);
        frames.extend(value.frames.iter().cloned());
        rest = after;
    }
    whole.extend_from_slice(rest);
    Ok(Value { bytes: whole.into(), frames })
}

// ---- Encoding and decoding ----

/// State of an encoding that postcard cannot carry: frames, placeholders, and the position in the bytes.
#[derive(Debug, Default)]
struct Encoding {
    /// Encodes arguments, in which futures are allowed and `Data` is not.
    is_arguments: bool,
    written: usize,
    frames: Vec<Buffer>,
    placeholders: Vec<(usize, Key)>,
    /// Why encoding failed: postcard's errors carry no text.
    refused: Option<&'static str>,
}

thread_local! {
    // Stacks, since a type may encode or decode other values while it is encoded or decoded.
    static ENCODING: RefCell<Vec<Encoding>> = const { RefCell::new(Vec::new()) };
    static DECODING: RefCell<Vec<VecDeque<Buffer>>> = const { RefCell::new(Vec::new()) };
}

fn encode<T: Serialize>(value: &T, is_arguments: bool) -> Result<(Vec<u8>, Encoding)> {
    let guard = StackGuard::begin(&ENCODING, Encoding { is_arguments, ..Encoding::default() });
    let written = postcard::serialize_with_flavor(value, CountingFlavor(Vec::new()));
    let encoding = guard.end();
    match (written, encoding.refused) {
        (_, Some(why)) => Err(Error::new(ErrorKind::Invalid, why)),
        (written, None) => Ok((written?, encoding)),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8], frames: VecDeque<Buffer>) -> Result<T> {
    let guard = StackGuard::begin(&DECODING, frames);
    let read = postcard::take_from_bytes(bytes);
    let frames_left = guard.end();
    let (value, bytes_left) = read?;
    if !bytes_left.is_empty() || !frames_left.is_empty() {
        return Err(Error::new(ErrorKind::Invalid, "more bytes than the type takes"));
    }
    Ok(value)
}

/// Counts the bytes written, which gives a placeholder its position.
struct CountingFlavor(Vec<u8>);

impl CountingFlavor {
    fn count(&self) {
        ENCODING.with_borrow_mut(|stack| {
            if let Some(encoding) = stack.last_mut() {
                encoding.written = self.0.len();
            }
        });
    }
}

impl postcard::ser_flavors::Flavor for CountingFlavor {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        self.count();
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        self.count();
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

type Stack<T> = std::thread::LocalKey<RefCell<Vec<T>>>;

/// An entry on a thread's stack. It is removed at the latest when a panic unwinds.
struct StackGuard<T: 'static> {
    stack: &'static Stack<T>,
    ended: bool,
}

impl<T> StackGuard<T> {
    fn begin(stack: &'static Stack<T>, item: T) -> Self {
        stack.with_borrow_mut(|stack| stack.push(item));
        Self { stack, ended: false }
    }

    fn end(mut self) -> T {
        self.ended = true;
        self.stack.with_borrow_mut(Vec::pop).expect("it began")
    }
}

impl<T> Drop for StackGuard<T> {
    fn drop(&mut self) {
        if !self.ended {
            self.stack.with_borrow_mut(Vec::pop);
        }
    }
}

/// Calls `keep` to record an item that takes no bytes, and fails if it is not allowed here.
fn serialize_out_of_band<S: Serializer>(
    serializer: S,
    keep: impl FnOnce(&mut Encoding) -> Result<(), &'static str>,
) -> Result<S::Ok, S::Error> {
    let kept = ENCODING.with_borrow_mut(|stack| {
        let encoding = stack.last_mut().ok_or("it can be serialized only in a task's arguments or result")?;
        keep(encoding).inspect_err(|why| encoding.refused = Some(why))
    });
    kept.map_err(S::Error::custom)?;
    serializer.serialize_unit()
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_out_of_band(serializer, |encoding| {
            if encoding.is_arguments {
                return Err("`Data` cannot be an argument: scatter it, and pass the future");
            }
            encoding.frames.push(self.0.clone());
            Ok(())
        })
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer)?;
        let frame = DECODING.with_borrow_mut(|stack| stack.last_mut().and_then(VecDeque::pop_front));
        frame.map(Self).ok_or_else(|| D::Error::custom("a frame is missing"))
    }
}

/// Records a placeholder for the value of `key`.
pub(crate) fn serialize_placeholder<S: Serializer>(key: Key, serializer: S) -> Result<S::Ok, S::Error> {
    serialize_out_of_band(serializer, |encoding| {
        if !encoding.is_arguments {
            return Err("a future can be serialized only as an argument of a task");
        }
        encoding.placeholders.push((encoding.written, key));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TestFuture(u64);

    impl Serialize for TestFuture {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serialize_placeholder(Key::new(1, self.0), serializer)
        }
    }

    #[test]
    fn data_is_encoded_as_frames_and_decoded_in_order() {
        let value = (7u32, Data::from(vec![1, 2]), Some(vec![Data::from(vec![3]), Data::default()]), "x");
        let stored = Value::of(&value).unwrap();
        assert_eq!((stored.bytes.len(), stored.frames.len(), stored.len()), (5, 3, 8));
        let (number, first, rest, text) = stored.read::<(u32, Data, Option<Vec<Data>>, String)>().unwrap();
        assert_eq!((number, first.as_slice(), text.as_str()), (7, Some(&[1, 2][..]), "x"));
        let rest: Vec<_> = rest.unwrap().into_iter().map(|data| data.0.to_vec().unwrap()).collect();
        assert_eq!(rest, [vec![3], vec![]]);
    }

    #[test]
    fn futures_can_replace_values_anywhere_in_arguments() {
        let arguments = (300u32, TestFuture(1), vec![TestFuture(2), TestFuture(1)], "end");
        let encoded = EncodedArguments::of(&arguments).unwrap();
        assert_eq!(encoded.inputs, [Key::new(1, 1), Key::new(1, 2)]);
        let one = Value::of(&(Data::from(vec![1]), 70_000u64)).unwrap();
        let two = Value::of(&(Data::from(vec![2, 2]), 5u64)).unwrap();
        let whole = substitute(&encoded.bytes, &encoded.placeholders, &[one, two], 1000).unwrap();
        type Item = (Data, u64);
        let (number, first, list, end) = whole.read::<(u32, Item, Vec<Item>, String)>().unwrap();
        assert_eq!((number, first.1, end.as_str()), (300, 70_000, "end"));
        assert_eq!(list.iter().map(|item| item.1).collect::<Vec<_>>(), [5, 70_000]);
        assert_eq!(list[0].0.as_slice(), Some(&[2, 2][..]));
    }

    #[test]
    fn mismatched_types_and_frames_are_errors() {
        assert!(Value::of(&1u8).unwrap().read::<String>().is_err());
        assert!(Value::of(&(1u8, 2u8)).unwrap().read::<u8>().is_err(), "bytes are left");
        assert!(Value::of(&Data::default()).unwrap().read::<()>().is_err(), "a frame is left");
        assert!(Value::default().read::<Data>().is_err(), "a frame is missing");
        assert!(postcard::to_allocvec(&Data::default()).is_err(), "not on its way to a task");
        let refused = EncodedArguments::of(&(1, Data::default())).unwrap_err();
        assert!(refused.to_string().contains("scatter"), "{refused}");
        let placeholder = |after, input| [Placeholder { after, input }];
        assert!(substitute(&[1], &placeholder(2, 0), &[Value::default()], 1000).is_err());
        assert!(substitute(&[1], &placeholder(1, 1), &[Value::default()], 1000).is_err());
    }

    #[test]
    fn substituted_values_are_bounded() {
        let value = Value { bytes: vec![0; 1000].into(), frames: vec![Buffer::default()] };
        let placeholders = vec![Placeholder { after: 0, input: 0 }; 1000];
        let refused = substitute(&[], &placeholders, std::slice::from_ref(&value), 100_000).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TooLarge);
        assert_eq!(substitute(&[], &placeholders[..50], &[value], 100_000).unwrap().bytes.len(), 50_000);
    }

    #[test]
    fn panic_while_encoding_clears_the_stack() {
        struct Mine;
        impl Serialize for Mine {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                panic!("planned")
            }
        }
        assert!(std::panic::catch_unwind(|| Value::of(&Mine)).is_err());
        ENCODING.with_borrow(|stack| assert!(stack.is_empty()));
    }
}
