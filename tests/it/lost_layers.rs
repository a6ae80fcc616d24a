//! Real runtimes that lose, while they are sent the rest, layers that need not be sent.

use std::process::Output;
use std::sync::Mutex;

use layerhold::delivery::{BlobError, BlobProvider, RuntimeClient, deliver};
use layerhold::event::{Event, Observer, Silent};
use layerhold::image::{Images, Layer, LayerMediaType};
use layerhold::outlet::Outlet;

use crate::delivery::{Blobs, Dockerd, Podman, have, ok};

/// Blobs, and what happens when the first one is asked for.
struct Meanwhile<'a> {
    blobs: &'a Blobs,
    happens: Mutex<Option<Box<dyn FnOnce() + Send + 'a>>>,
}

impl BlobProvider for Meanwhile<'_> {
    fn copy_to(&self, layer: &Layer, out: &mut dyn Outlet) -> Result<(), BlobError> {
        if let Some(happens) = self.happens.lock().unwrap().take() {
            happens();
        }
        self.blobs.copy_to(layer, out)
    }
}

/// Keeps what `-v` says.
#[derive(Default)]
struct Details(Mutex<Vec<String>>);

impl Observer for Details {
    fn event(&self, event: Event) {
        if let Event::Detail { message } = event {
            self.0.lock().unwrap().push(message);
        }
    }
}

/// The runtime loses the layers that it need not be sent while it is sent the others; `command` is its command line.
fn gets_all_after_all(client: &RuntimeClient, command: &(dyn Fn(&[&str]) -> Output + Sync), name: &str) {
    let mut blobs = Blobs::default();
    let first = blobs.image("hello", "v1", LayerMediaType::Tar, "first");
    blobs.deliver(&first, &mut client.sink(&Silent)).unwrap();
    let second = blobs.image("hello", "v1", LayerMediaType::Tar, "second");
    let remove = || drop(ok(command(&["image", "rm", "-f", name])));
    let provider = Meanwhile { blobs: &blobs, happens: Mutex::new(Some(Box::new(remove))) };
    let said = Details::default();
    let sent = deliver(&Images::from(second), &provider, &mut client.sink(&said), &said).unwrap();
    assert!(provider.happens.lock().unwrap().is_none());
    assert_eq!((sent.layers_sent, sent.layers_held), (3, 0));
    assert_eq!(ok(command(&["run", "--rm", "--network", "none", name])), "second");
    // First the runtime's own words, then what is done about it.
    let said = said.0.lock().unwrap().join("\n");
    assert!(said.contains(" load' failed with exit status ") && said.contains("sending the whole image"), "{said}");
}

#[test]
fn docker_gets_every_layer_where_it_loses_some_meanwhile() {
    let Some(daemon) = Dockerd::classic() else { return };
    gets_all_after_all(&daemon.client(), &|arguments| daemon.docker(arguments), "hello:v1");
}

#[test]
fn podman_gets_every_layer_where_it_loses_some_meanwhile() {
    if !have(&["podman", "runc"]) {
        return;
    }
    let podman = Podman::new();
    gets_all_after_all(&podman.client(), &|arguments| podman.podman(arguments), "localhost/hello:v1");
}
