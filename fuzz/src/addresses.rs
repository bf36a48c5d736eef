//! Addresses: an address that parses can be printed, and parses to the same address again.

use towline::Address;

use crate::HeapMax;

/// Parses the input as an address, prints it, and rebuilds it from its parts.
pub fn run(input: &[u8]) -> HeapMax {
    const HEAP_MAX: HeapMax = 64 << 10;
    let Ok(text) = std::str::from_utf8(input) else { return HEAP_MAX };
    match text.parse::<Address>() {
        Ok(address) => check(&address),
        Err(error) => assert!(error.to_string().len() < 2000, "a long error for an invalid address"),
    }
    HEAP_MAX
}

fn check(address: &Address) {
    let text = address.to_string();
    assert!(text.len() <= 1024, "an address beyond its limit");
    let again: Address = text.parse().expect("a printed address parses");
    assert_eq!((address, &text), (&again, &again.to_string()));
    let mut made = match address.name() {
        Some(name) => Address::mem(name),
        None => Address::new(address.scheme(), address.host(), address.port()),
    }
    .expect("its parts make an address");
    for (key, value) in address.options() {
        assert_eq!(address.option(key), Some(value));
        made = made.with_option(key, value).expect("its options are options");
    }
    assert_eq!(address, &made);
}
