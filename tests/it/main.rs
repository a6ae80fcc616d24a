//! Integration tests, one binary: the built `layerhold` against real stores, real runtimes and real readers of images.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

mod archive;
mod bucket_server;
mod cache_server;
mod flox_fixture;
mod floxhub_fixture;
mod lost_layers;
mod nix_fixture;
mod peers;
mod registry_messages;
mod registry_proxy;
mod registry_server;
mod registry_tokens;
mod sandbox;
mod stand_in;
mod terminal;

mod activation;
mod ballast;
mod buckets;
mod cache;
mod catalog;
mod chroot;
mod containerize;
mod crash;
mod crowd;
mod damage;
mod delivery;
mod failures;
mod fuzz_corpus;
mod golden;
mod hostile;
mod house;
mod laws;
mod offline;
mod platform_peers;
mod platforms;
mod previous;
mod proxy;
mod registry_conformance;
mod registry_faults;
mod registry_logins;
mod registry_memory;
mod registry_peers;
mod registry_traffic;
mod registry_tunnels;
mod remote;
mod runtimes;
mod services;
mod share;
mod share_faults;
mod substitute;
mod surroundings;
mod tidying;
mod trees;
