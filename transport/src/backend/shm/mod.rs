//! Between processes of one host, through memory that both map.

#[cfg_attr(not(test), expect(dead_code, reason = "the link that moves bytes through it is still to come"))]
mod ring;
