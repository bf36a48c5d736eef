//! The types that can stand for a parameter: a value of its type, or a future of one.

use serde::{Serialize, Serializer};

use super::Future;
use crate::value::serialize_placeholder;

/// A type that can be passed for a parameter `T`: a `T`, a [`Future<T>`](Future), or a list of futures where
/// `T` is a `Vec`.
pub trait Argument<T>: Serialize {}

impl<T: Serialize> Argument<T> for T {}
impl Argument<String> for &str {}
impl<T> Argument<T> for Future<T> {}
impl<T> Argument<T> for &Future<T> {}
impl<T> Argument<Vec<T>> for Vec<Future<T>> {}
impl<T> Argument<Vec<T>> for &Vec<Future<T>> {}
impl<T> Argument<Vec<T>> for &[Future<T>] {}
impl<T> Argument<Vec<T>> for Vec<&Future<T>> {}

/// A tuple that can be passed for the parameter tuple `P`.
pub trait Arguments<P>: Serialize {}

impl Arguments<()> for () {}

macro_rules! arguments {
    ($($parameter:ident $argument:ident),*) => {
        impl<$($parameter, $argument),*> Arguments<($($parameter,)*)> for ($($argument,)*)
        where
            $($argument: Argument<$parameter>),*
        {
        }
    };
}

arguments!(P1 A1);
arguments!(P1 A1, P2 A2);
arguments!(P1 A1, P2 A2, P3 A3);
arguments!(P1 A1, P2 A2, P3 A3, P4 A4);
arguments!(P1 A1, P2 A2, P3 A3, P4 A4, P5 A5);
arguments!(P1 A1, P2 A2, P3 A3, P4 A4, P5 A5, P6 A6);
arguments!(P1 A1, P2 A2, P3 A3, P4 A4, P5 A5, P6 A6, P7 A7);

/// Serializes only as an argument of a task.
impl<T> Serialize for Future<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_placeholder(self.key(), serializer)
    }
}
