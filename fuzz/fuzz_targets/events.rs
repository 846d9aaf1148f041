#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tailnet::sim::fuzz::events(bytes));
