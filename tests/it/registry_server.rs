//! Debian's `docker-registry` on 127.0.0.1, with a storage of the test's own: open or behind a login, plain or with TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::peers::find_program;
use crate::ports;
use crate::registry_messages::{self, Answer};

/// Who may log in where a login is demanded.
pub(crate) const LOGIN: (&str, &str) = ("keeper", "sesame-4711");

/// That login as Apache's `htpasswd` writes it: the registry takes bcrypt alone.
const HTPASSWD: &str = "keeper:$2b$04$abcdefghijklmnopqrstuu6sY3P5qG63S2M1n3TdY98AgJRZ8znRq\n";

/// Where `PATH` or `scripts/test` has the program, with openssl for its certificates; `None` where they are not.
pub(crate) fn docker_registry() -> Option<DockerRegistry> {
    let unpacked = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("docker-registry/usr/bin");
    let unpacked = Some(unpacked.join("docker-registry")).filter(|program| program.is_file());
    let program = find_program("docker-registry").or(unpacked)?;
    Some(DockerRegistry { program, openssl: find_program("openssl")? })
}

/// The program, not yet running.
pub(crate) struct DockerRegistry {
    program: PathBuf,
    openssl: PathBuf,
}

/// How a registry is set up; by default as the program is without a word: open, plain, and nothing is ever deleted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Setup {
    /// Basic authentication, for [`LOGIN`].
    pub(crate) login: bool,
    /// TLS, with a certificate by an authority that nobody knows.
    pub(crate) tls: bool,
    /// Manifests and blobs may be deleted.
    pub(crate) deletes: bool,
    /// Addresses in answers are relative.
    pub(crate) relative: bool,
    /// Tokens, of a service in plain http at this port; only with TLS, for what signs them is the authority's.
    pub(crate) tokens_at: Option<u16>,
}

/// A running registry; it ends with the test.
pub(crate) struct RegistryServer {
    server: Child,
    port: u16,
    directory: PathBuf,
    setup: Setup,
    program: PathBuf,
}

impl DockerRegistry {
    /// Starts it with its storage in a directory.
    pub(crate) fn start(&self, directory: &Path, setup: Setup) -> RegistryServer {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("htpasswd"), HTPASSWD).unwrap();
        if setup.tls && !directory.join("server.pem").exists() {
            self.make_certificates(directory);
        }
        let config = directory.join("config.yml");
        let (server, port) = ports::serve(|port| {
            fs::write(&config, configuration(directory, port, setup)).unwrap();
            let mut command = Command::new(&self.program);
            command.arg("serve").arg(&config).env_clear();
            command
        });
        RegistryServer { server, port, directory: directory.to_owned(), setup, program: self.program.clone() }
    }

    /// An authority, and a certificate of its making for 127.0.0.1, localhost and registry.example.
    fn make_certificates(&self, directory: &Path) {
        let extensions = "[req]\ndistinguished_name=name\n[name]\n[ca]\nbasicConstraints=critical,CA:TRUE\n\
             keyUsage=critical,keyCertSign\n[server]\nbasicConstraints=critical,CA:FALSE\n\
             subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.example\n";
        fs::write(directory.join("openssl.cnf"), extensions).unwrap();
        let run = |args: &str| {
            let mut command = Command::new(&self.openssl);
            command.args(args.split(' ')).current_dir(directory).stdin(Stdio::null());
            let output = command.output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let new = "req -x509 -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650";
        run(&format!("{new} -subj /CN=authority -extensions ca -keyout authority.key -out authority.pem"));
        let by = "-CA authority.pem -CAkey authority.key";
        run(&format!("{new} -subj /CN=registry -extensions server {by} -keyout server.key -out server.pem"));
    }
}

fn configuration(directory: &Path, port: u16, setup: Setup) -> String {
    let Setup { login, tls, deletes, relative, tokens_at } = setup;
    let at = |name: &str| directory.join(name).display().to_string();
    let mut text = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n\
         storage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: {deletes}\n\
         http:\n  addr: 127.0.0.1:{port}\n  secret: tests\n  relativeurls: {relative}\n",
        at("storage")
    );
    if tls {
        text += &format!("  tls:\n    certificate: {}\n    key: {}\n", at("server.pem"), at("server.key"));
    }
    if login {
        text += &format!("auth:\n  htpasswd:\n    realm: tests\n    path: {}\n", at("htpasswd"));
    }
    if let Some(port) = tokens_at {
        let realm = format!("http://127.0.0.1:{port}/token");
        let bundle = at("authority.pem");
        text += &format!(
            "auth:\n  token:\n    realm: {realm}\n    service: tests\n    issuer: tests\n    rootcertbundle: {bundle}\n"
        );
    }
    text
}

impl RegistryServer {
    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A reference into it: `name` is `NAME[:TAG|@DIGEST]`.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The file with the certificate of its authority.
    pub(crate) fn authority(&self) -> PathBuf {
        self.directory.join("authority.pem")
    }

    /// Asks it without the product; not over TLS.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        assert!(!self.setup.tls, "there is no TLS in these tests' own client");
        let login = self.setup.login.then(|| registry_messages::basic(LOGIN.0, LOGIN.1));
        let headers: Vec<_> = login.iter().map(|login| ("Authorization", login.as_str())).collect();
        registry_messages::ask(self.port, method, path, &headers)
    }

    /// The digests of all blobs that a repository has, manifests left out.
    pub(crate) fn blobs(&self, repository: &str) -> Vec<String> {
        let links = self.repository(repository).join("_layers/sha256");
        let Ok(links) = fs::read_dir(links) else { return Vec::new() };
        let mut digests: Vec<_> =
            links.map(|link| format!("sha256:{}", link.unwrap().file_name().to_str().unwrap())).collect();
        digests.sort();
        digests
    }

    /// The bytes of a blob or manifest, whatever repository has it; damages and losses show in it.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.directory.join(format!("storage/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    /// A blob goes from a repository, as when its collection of garbage took it.
    pub(crate) fn lose(&self, repository: &str, digest: &str) {
        let hex = digest.strip_prefix("sha256:").unwrap();
        fs::remove_dir_all(self.repository(repository).join("_layers/sha256").join(hex)).unwrap();
    }

    /// A tag of a manifest that is not there, as when its removal was cut short.
    pub(crate) fn lead_nowhere(&self, repository: &str, tag: &str) {
        let current = self.repository(repository).join("_manifests/tags").join(tag).join("current");
        fs::create_dir_all(&current).unwrap();
        fs::write(current.join("link"), format!("sha256:{}", "0".repeat(64))).unwrap();
    }

    /// Has it remove what no manifest names, as its keeper would by night.
    pub(crate) fn collect_garbage(&self) {
        let config = self.directory.join("config.yml");
        let output = Command::new(&self.program).arg("garbage-collect").arg(config).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The tags of a repository, out of its storage.
    pub(crate) fn tags(&self, repository: &str) -> Vec<String> {
        let Ok(tags) = fs::read_dir(self.repository(repository).join("_manifests/tags")) else { return Vec::new() };
        let mut tags: Vec<_> = tags
            .map(|tag| tag.unwrap().path())
            .filter(|tag| tag.join("current/link").exists())
            .map(|tag| tag.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        tags.sort();
        tags
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.directory.join("storage/docker/registry/v2/repositories").join(name)
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        let _ = (self.server.kill(), self.server.wait());
    }
}
