//! What scheduler, workers and clients say to each other. Bulk data is never in here: it travels as frames.
//!
//! A batch of these is one message of the transport: see `line.rs`. What a number in them may be is checked where it is used.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Failure;
use crate::stats::Stats;
use crate::value::Placeholder;

/// Both ends of a line speak the same version, or none.
pub(crate) const VERSION: u16 = 1;

/// The most bytes of one task's arguments, without the values of futures among them.
pub(crate) const ARGUMENTS_LEN_MAX: usize = 1 << 20;
/// The most futures among the arguments of one task, and the most places where they stand.
pub(crate) const INPUTS_MAX: usize = 65_536;
/// The longest name of a function, in bytes.
pub(crate) const NAME_LEN_MAX: usize = 255;
/// The most functions a scheduler knows.
pub(crate) const FUNCTIONS_MAX: usize = 65_536;
/// The most of them that one client may be the first to name.
pub(crate) const NEW_FUNCTIONS_MAX: usize = 4_096;
/// The most tasks a worker may run at once.
pub(crate) const SLOTS_MAX: u32 = 4_096;
/// The largest value, in bytes: as the payload of a message.
pub(crate) const VALUE_LEN_MAX: u64 = 1 << 48;

/// Names a task and its result: by a number of its client, which no other client has, and one that the client uses once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(u64);

const SEQUENCE_BITS: u32 = 40;

impl Key {
    pub(crate) const fn new(client: ClientId, sequence: u64) -> Self {
        Self((client as u64) << SEQUENCE_BITS | sequence & ((1 << SEQUENCE_BITS) - 1))
    }

    pub(crate) const fn client(self) -> ClientId {
        (self.0 >> SEQUENCE_BITS) as ClientId
    }

    const fn sequence(self) -> u64 {
        self.0 & ((1 << SEQUENCE_BITS) - 1)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.client(), self.sequence())
    }
}

// As two small numbers, which are few bytes each.
impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.client(), self.sequence()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (client, sequence) = <(ClientId, u64)>::deserialize(deserializer)?;
        Ok(Self::new(client, sequence))
    }
}

/// A client, to the scheduler; below 2^24, used once.
pub(crate) type ClientId = u32;
/// A worker, to all; used once.
pub(crate) type WorkerId = u32;
/// A function, between two ends.
pub(crate) type FunctionId = u32;
/// A function's parameters and result, as far as a number tells types apart.
pub(crate) type Types = u64;
/// One run of a task; used once.
pub(crate) type Attempt = u64;

/// Bytes that are passed on as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// What a task is to be called with. The scheduler does not look into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskArguments {
    pub(crate) bytes: Blob,
    pub(crate) placeholders: Vec<Placeholder>,
}

impl TaskArguments {
    /// Whether any task may have them, with so many inputs.
    pub(crate) fn are_within_limits(&self, inputs: usize) -> bool {
        self.bytes.0.len() <= ARGUMENTS_LEN_MAX
            && self.placeholders.len() <= INPUTS_MAX
            && inputs <= INPUTS_MAX
    }
}

/// The first words on a line to the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: u16,
    pub(crate) role: Role,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    Client,
    Worker(Offer),
}

/// What a worker is and can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// Where other workers and clients find it.
    pub(crate) address: String,
    /// Tasks that it runs at once.
    pub(crate) slots: u32,
    pub(crate) memory_bytes_max: u64,
}

/// The scheduler's answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Welcome {
    Number(u32),
    /// It speaks another version: this one.
    Version(u16),
    /// It cannot be what it says it is.
    Refused(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromClient {
    /// From now on this client calls that function by its id: its first has 0, its next 1, and so on.
    Function {
        name: String,
        types: Types,
    },
    Submit {
        key: Key,
        function: FunctionId,
        inputs: Vec<Key>,
        arguments: TaskArguments,
    },
    /// This worker will have the data of that key from this client.
    Scatter {
        key: Key,
        worker: WorkerId,
    },
    /// The client needs it no more.
    Release {
        key: Key,
    },
    /// As release, and whoever waits for it shall not.
    Cancel {
        key: Key,
    },
    /// The worker did not give it.
    FetchFailed {
        key: Key,
        worker: WorkerId,
    },
    WhoHas {
        request: u64,
        key: Key,
    },
    GetStats {
        request: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToClient {
    Joined {
        worker: WorkerId,
        address: String,
    },
    Left {
        worker: WorkerId,
    },
    /// The worker has it.
    Done {
        key: Key,
        worker: WorkerId,
        bytes: u64,
    },
    Failed {
        key: Key,
        /// Shared by all tasks that fail of it.
        #[serde(serialize_with = "shared", deserialize_with = "unshared")]
        failure: Arc<Failure>,
    },
    /// It was done, and is lost, and will be done again.
    Recomputing {
        key: Key,
    },
    Holders {
        request: u64,
        workers: Vec<WorkerId>,
    },
    Stats {
        request: u64,
        stats: Stats,
    },
    /// The last that it hears: why it is turned away.
    Refused(Failure),
}

fn shared<S: Serializer>(failure: &Arc<Failure>, serializer: S) -> Result<S::Ok, S::Error> {
    failure.as_ref().serialize(serializer)
}

fn unshared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Failure>, D::Error> {
    Failure::deserialize(deserializer).map(Arc::new)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    Joined {
        worker: WorkerId,
        address: String,
    },
    Left {
        worker: WorkerId,
    },
    /// The next function: ids count from 0.
    Function {
        name: String,
        types: Types,
    },
    Assign(Assignment),
    /// The run is no longer wanted.
    Drop {
        key: Key,
        attempt: Attempt,
    },
    /// Give it back if it has not begun.
    Recall {
        key: Key,
        attempt: Attempt,
    },
    /// Nobody needs the data.
    Free {
        key: Key,
    },
    /// The last that it hears: why it is turned away.
    Refused(Failure),
}

/// A task to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub(crate) key: Key,
    pub(crate) attempt: Attempt,
    pub(crate) function: FunctionId,
    pub(crate) priority: Priority,
    pub(crate) inputs: Vec<Input>,
    pub(crate) arguments: TaskArguments,
}

/// A result that a task needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Input {
    pub(crate) key: Key,
    pub(crate) bytes: u64,
    /// Some of those that have it.
    pub(crate) holders: Vec<WorkerId>,
}

/// What goes first is less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Priority {
    /// The first submitted of the tasks without inputs that it descends from.
    pub(crate) root: u64,
    /// How far it is from its roots; deeper is less.
    pub(crate) depth: std::cmp::Reverse<u32>,
    /// In the order of submission.
    pub(crate) number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// It ran, and its result is here; a scattered one was run 0.
    Done {
        key: Key,
        attempt: Attempt,
        bytes: u64,
        micros: u32,
    },
    Failed {
        key: Key,
        attempt: Attempt,
        failure: Failure,
    },
    /// It was not begun: it was recalled, or these holders did not give these inputs.
    Returned {
        key: Key,
        attempt: Attempt,
        lacking: Vec<(Key, WorkerId)>,
    },
    /// A copy of this is here as well.
    HasCopy {
        key: Key,
    },
    /// So many bytes came from that worker, over that path.
    Transferred {
        from: WorkerId,
        path: String,
        bytes: u64,
    },
}

// ---- Between whoever wants data and whoever has it ----

/// The header of a message to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DataRequest {
    Fetch {
        request: u64,
        key: Key,
    },
    /// The message's value is to be kept.
    Put {
        request: u64,
        key: Key,
        value: ValueBytes,
    },
}

/// The header of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DataReply {
    Found {
        request: u64,
        value: ValueBytes,
    },
    /// Fetched, it is not here.
    Missing {
        request: u64,
    },
    Kept {
        request: u64,
    },
    Refused {
        request: u64,
        failure: Failure,
    },
}

/// A value's bytes: in the header where they are few, else the message's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ValueBytes {
    Inline(Blob),
    FirstFrame,
}

impl ValueBytes {
    /// Bytes of it that are in the header.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Inline(Blob(bytes)) => bytes.len() as u64,
            Self::FirstFrame => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_few_bytes_and_comes_back() {
        for key in [Key::new(0, 0), Key::new(3, 1000), Key::new((1 << 24) - 1, (1 << 40) - 1)] {
            let bytes = postcard::to_allocvec(&key).unwrap();
            assert_eq!(postcard::from_bytes::<Key>(&bytes).unwrap(), key);
        }
        assert_eq!(postcard::to_allocvec(&Key::new(3, 1000)).unwrap().len(), 3);
    }

    #[test]
    fn an_empty_task_is_few_bytes() {
        let arguments = TaskArguments::default();
        let submit = FromClient::Submit { key: Key::new(1, 99), function: 0, inputs: Vec::new(), arguments };
        assert!(postcard::to_allocvec(&submit).unwrap().len() <= 8);
    }

    #[test]
    fn deeper_goes_first_within_a_root() {
        let priority = |root, depth, number| Priority { root, depth: std::cmp::Reverse(depth), number };
        let mut order = [priority(2, 0, 2), priority(1, 0, 1), priority(1, 1, 9), priority(1, 1, 5)];
        order.sort();
        assert_eq!(order.map(|priority| priority.number), [5, 9, 1, 2]);
    }
}
