//! What a push has under way at once: a registry that answers nobody before enough have asked shows who waits in turns.

use super::samples::{Blobs, deliver, image};
use super::{Delivered, RegistrySink};
use crate::event::Silent;
use crate::registry::stand_in::StandIn;
use crate::registry::{Registries, Settings};

/// Pushes an image of so many layers, whose bytes come on so many threads.
fn push(registry: &StandIn, layers: usize, threads: usize) -> Delivered {
    push_blobs(registry, layers, |blobs| blobs.on_threads(threads))
}

/// The same of blobs that are had in some way.
fn push_blobs(registry: &StandIn, layers: usize, had: impl FnOnce(Blobs) -> Blobs) -> Delivered {
    let texts: Vec<String> = (0..layers).map(|n| format!("layer {n}")).collect();
    let (image, blobs) = image("v1", &texts.iter().map(String::as_str).collect::<Vec<_>>());
    let registries = Registries::new(Settings::default(), &Silent);
    let repository = registries.repository(&registry.reference("team/app:v1").parse().unwrap());
    let mut sink = RegistrySink::new(repository, &Silent);
    deliver(&image, &had(blobs), &mut sink, &Silent).unwrap()
}

#[test]
fn layers_are_sent_several_at_once() {
    let registry = StandIn::start();
    registry.hold("PUT", "/blobs/uploads/", 0, 6);
    push(&registry, 12, 6);
    assert_eq!(registry.most_at_once(), 6);
    // The layers and the configuration.
    assert_eq!(registry.kept().blobs.len(), 13);
}

#[test]
fn layers_that_need_only_be_read_are_sent_many_at_once_on_any_machine() {
    let registry = StandIn::start();
    registry.hold("PUT", "/blobs/uploads/", 0, 8);
    push_blobs(&registry, 12, |blobs| blobs.on_threads(1).made());
    assert_eq!(registry.most_at_once(), 8);
    assert_eq!(registry.kept().blobs.len(), 13);
}

#[test]
fn whether_blobs_are_there_is_asked_of_many_at_once() {
    let registry = StandIn::start();
    // The first one finds the way for the others.
    registry.hold("HEAD", "/blobs/", 1, 16);
    push(&registry, 40, 1);
    assert_eq!(registry.most_at_once(), 16);
    assert_eq!(registry.kept().blobs.len(), 41);
}
