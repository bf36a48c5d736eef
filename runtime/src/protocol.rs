//! The messages between scheduler, workers and clients. Payload is not part of them: it travels as frames.
//!
//! A batch of messages is one transport message: see `batch.rs`. Each number is validated where it is used.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Failure;
use crate::stats::Stats;
use crate::value::Placeholder;

/// Both ends of a connection must have the same version.
pub(crate) const VERSION: u16 = 1;

/// Maximum size of one task's arguments, in bytes, without the values of futures among them.
pub(crate) const ARGUMENTS_LEN_MAX: usize = 1 << 20;
/// Maximum number of futures among the arguments of one task, and of their placeholders.
pub(crate) const INPUTS_MAX: usize = 65_536;
/// Maximum length of a function's name, in bytes.
pub(crate) const NAME_LEN_MAX: usize = 255;
/// Maximum number of functions of a scheduler.
pub(crate) const FUNCTIONS_MAX: usize = 65_536;
/// Maximum number of functions that one client may introduce.
pub(crate) const NEW_FUNCTIONS_MAX: usize = 4_096;
/// Maximum number of tasks that a worker may run at once.
pub(crate) const SLOTS_MAX: u32 = 4_096;
/// Maximum size of a value, in bytes: that of a message's payload.
pub(crate) const VALUE_LEN_MAX: u64 = 1 << 48;

/// Identifies a task and its result: the client's number, and a sequence number that the client uses once.
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

// Serialized as two small numbers of few bytes each.
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

/// Identifies a client to the scheduler. Less than 2^24, never reused.
pub(crate) type ClientId = u32;
/// Identifies a worker to all peers. Never reused.
pub(crate) type WorkerId = u32;
/// Identifies a function between two ends.
pub(crate) type FunctionId = u32;
/// A hash of a function's parameter and result types.
pub(crate) type Types = u64;
/// Identifies one attempt at a task. Never reused.
pub(crate) type Attempt = u64;

/// Opaque bytes.
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

/// The arguments of a task. The scheduler does not decode them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TaskArguments {
    pub(crate) bytes: Blob,
    pub(crate) placeholders: Vec<Placeholder>,
}

impl TaskArguments {
    /// Returns whether the arguments are within the limits, for a task of `inputs` inputs.
    pub(crate) fn are_within_limits(&self, inputs: usize) -> bool {
        self.bytes.0.len() <= ARGUMENTS_LEN_MAX
            && self.placeholders.len() <= INPUTS_MAX
            && inputs <= INPUTS_MAX
    }
}

/// The first message on a connection to the scheduler.
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

/// The properties of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// The address for other workers and clients.
    pub(crate) address: String,
    /// Tasks that it runs at once.
    pub(crate) slots: u32,
    pub(crate) memory_bytes_max: u64,
}

/// The scheduler's reply to a hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Welcome {
    Number(u32),
    /// The scheduler has this other version.
    Version(u16),
    /// The scheduler refuses the peer.
    Refused(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromClient {
    /// Declares a function. The client refers to its functions by id, in the order of these messages, from 0.
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
    /// Announces that the client will send this key's data to the worker.
    Scatter {
        key: Key,
        worker: WorkerId,
    },
    /// The client does not need the result any more.
    Release {
        key: Key,
    },
    /// Fails the task and its dependents, unless it is done.
    Cancel {
        key: Key,
    },
    /// The worker did not send the value.
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
    /// The worker has the result.
    Done {
        key: Key,
        worker: WorkerId,
        bytes: u64,
    },
    Failed {
        key: Key,
        /// Shared by all tasks that fail with it.
        #[serde(serialize_with = "shared", deserialize_with = "unshared")]
        failure: Arc<Failure>,
    },
    /// The result was lost and will be computed again.
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
    /// The last message to a refused peer: the reason.
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
    /// Declares a function. Ids count from 0.
    Function {
        name: String,
        types: Types,
    },
    Assign(Assignment),
    /// The attempt is no longer wanted.
    Drop {
        key: Key,
        attempt: Attempt,
    },
    /// Requests the task back if it has not begun.
    Recall {
        key: Key,
        attempt: Attempt,
    },
    /// The data is no longer needed.
    Free {
        key: Key,
    },
    /// The last message to a refused peer: the reason.
    Refused(Failure),
}

/// A task for a worker to run.
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
    /// Some of the workers that have it.
    pub(crate) holders: Vec<WorkerId>,
}

/// Lower values run first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Priority {
    /// The submission number of the earliest root among the task's ancestors. A root is a task without
    /// inputs.
    pub(crate) root: u64,
    /// The distance from the roots; deeper tasks run first.
    pub(crate) depth: std::cmp::Reverse<u32>,
    /// The order of submission.
    pub(crate) number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// The attempt ended, and the worker has its result. Scattered data has attempt 0.
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
    /// The attempt was not begun: it was recalled, or these holders did not send these inputs.
    Returned {
        key: Key,
        attempt: Attempt,
        lacking: Vec<(Key, WorkerId)>,
    },
    /// The worker has a copy of this result.
    HasCopy {
        key: Key,
    },
    /// The worker fetched this many bytes from another, over that path.
    Transferred {
        from: WorkerId,
        path: String,
        bytes: u64,
    },
}

// ---- Data transfers between peers ----

/// The header of a request to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DataRequest {
    Fetch {
        request: u64,
        key: Key,
    },
    /// Stores the value of this message.
    Put {
        request: u64,
        key: Key,
        value: ValueBytes,
    },
}

/// The header of the reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DataReply {
    Found {
        request: u64,
        value: ValueBytes,
    },
    /// The worker does not have the requested value.
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

/// A value's bytes: in the header if they are few, else in the message's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ValueBytes {
    Inline(Blob),
    FirstFrame,
}

impl ValueBytes {
    /// Returns the number of value bytes in the header.
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
    fn key_round_trips_in_few_bytes() {
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
    fn deeper_tasks_go_first_within_a_root() {
        let priority = |root, depth, number| Priority { root, depth: std::cmp::Reverse(depth), number };
        let mut order = [priority(2, 0, 2), priority(1, 0, 1), priority(1, 1, 9), priority(1, 1, 5)];
        order.sort();
        assert_eq!(order.map(|priority| priority.number), [5, 9, 1, 2]);
    }
}
