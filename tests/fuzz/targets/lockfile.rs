#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    layerhold_fuzz::lockfile(bytes);
});
