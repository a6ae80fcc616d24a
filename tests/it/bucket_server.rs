//! moto's server of Amazon's protocol, with a bucket that holds a binary cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::ports;
use crate::sandbox::Sandbox;

/// Where `scripts/test` puts it; `None` where it has not.
pub(crate) fn moto() -> Option<Moto> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("moto");
    place.join("whole").exists().then(|| Moto { python: place.join("bin/python") })
}

/// The server, not yet running.
pub(crate) struct Moto {
    python: PathBuf,
}

/// Who may read a bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Whoever signs with the keys of the one user that there is.
    Owner,
    /// Everybody.
    All,
}

impl Readers {
    /// Who has to be able to read a bucket, for it to be asked as one of Amazon's or of Google's.
    pub(crate) fn of(is_googles: bool) -> Self {
        if is_googles { Self::All } else { Self::Owner }
    }
}

/// A running server; it ends with the test.
pub(crate) struct BucketServer {
    server: Child,
    python: PathBuf,
    port: u16,
    /// The owner's key and its secret.
    pub(crate) keys: (String, String),
}

/// The server, by a clock that is behind.
const SERVE: &str = r#"
import datetime, sys
import moto.core.utils as utils
now, behind = utils.utcnow, datetime.timedelta(seconds=int(sys.argv.pop(1)))
utils.utcnow = lambda: now() - behind
from moto.server import main
main()
"#;

/// Says what is in the bucket, each with its tag.
const LIST: &str = r#"
import sys
import boto3
endpoint, id, secret = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1",
                  aws_access_key_id=id, aws_secret_access_key=secret)
for object in s3.list_objects_v2(Bucket="cache").get("Contents", []):
    print(object["Key"], object["ETag"].strip('"'))
"#;

/// Makes a user and a bucket, fills the bucket, and has signatures checked from then on where all may not read.
const FILL: &str = r#"
import json, os, sys, urllib.request
import boto3
endpoint, directory, readers = sys.argv[1:]
def client(name):
    return boto3.client(name, endpoint_url=endpoint, region_name="us-east-1",
                        aws_access_key_id="nobody", aws_secret_access_key="nothing")
iam, s3 = client("iam"), client("s3")
iam.create_user(UserName="owner")
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
iam.put_user_policy(UserName="owner", PolicyName="all", PolicyDocument=json.dumps(policy))
key = iam.create_access_key(UserName="owner")["AccessKey"]
s3.create_bucket(Bucket="cache")
for place, _, names in os.walk(directory):
    for name in names:
        file = os.path.join(place, name)
        with open(file, "rb") as body:
            s3.put_object(Bucket="cache", Key=os.path.relpath(file, directory), Body=body,
                          ACL="public-read" if readers == "all" else "private")
if readers != "all":
    text = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(endpoint + "/moto-api/reset-auth", b"0", text))
print(key["AccessKeyId"], key["SecretAccessKey"])
"#;

impl Moto {
    /// Starts it with the files of a directory in the bucket `cache`.
    pub(crate) fn start(&self, directory: &Path, readers: Readers) -> BucketServer {
        self.start_behind(Duration::ZERO, directory, readers)
    }

    /// The same with a clock that is so far behind: what is put there is as old at once.
    pub(crate) fn start_behind(&self, behind: Duration, directory: &Path, readers: Readers) -> BucketServer {
        let (server, port) = ports::serve(|port| {
            let mut command = python(&self.python);
            command.args(["-c", SERVE, &behind.as_secs().to_string(), "--host", "127.0.0.1"]);
            command.args(["--port", &port.to_string()]);
            command
        });
        let mut running = BucketServer { server, python: self.python.clone(), port, keys: Default::default() };
        let readers = if readers == Readers::All { "all" } else { "owner" };
        let said = running.run(FILL, &[&directory.display().to_string(), readers]);
        let (id, secret) = said.trim().split_once(' ').unwrap();
        running.keys = (id.to_owned(), secret.to_owned());
        running
    }
}

fn python(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    command
}

impl BucketServer {
    /// Runs a client's script with the server's address and these arguments: what it prints.
    fn run(&self, script: &str, args: &[&str]) -> String {
        let output = python(&self.python).args(["-c", script, &self.endpoint()]).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The names of all that is in the bucket.
    pub(crate) fn names(&self) -> Vec<String> {
        self.parts().into_keys().collect()
    }

    /// All that is in the bucket, and in how many parts it came there.
    pub(crate) fn parts(&self) -> BTreeMap<String, u32> {
        let listed = self.run(LIST, &[&self.keys.0, &self.keys.1]);
        let object = |line: &str| {
            let (name, tag) = line.split_once(' ').unwrap();
            // The tag of what came in parts ends with their number.
            (name.to_owned(), tag.split_once('-').map_or(1, |(_, parts)| parts.parse().unwrap()))
        };
        listed.lines().map(object).collect()
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.host())
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A place in the bucket as a shared cache in one of Google's, whose protocol for files is Amazon's but for
    /// conditions. The user of the sandbox has a key of Google's kind; what it signs only a bucket for everybody takes.
    pub(crate) fn google_share(&self, sandbox: &Sandbox, openssl: &Path, prefix: &str) -> String {
        let made = Command::new(openssl).args(["genrsa", "-traditional", "2048"]).output().unwrap();
        assert!(made.status.success());
        let account = serde_json::json!({
            "type": "service_account",
            "client_email": "keeper@tests.example",
            "private_key_id": "tests",
            "private_key": String::from_utf8(made.stdout).unwrap(),
        });
        let file = sandbox.path("google.json");
        std::fs::write(&file, account.to_string()).unwrap();
        sandbox.set("GOOGLE_APPLICATION_CREDENTIALS", &file);
        format!("gs://cache/{prefix}?endpoint={}", self.endpoint())
    }

    /// A place in the bucket as a shared cache, for the user of a sandbox, who has the owner's keys in the usual file.
    pub(crate) fn share(&self, sandbox: &Sandbox, prefix: &str) -> String {
        let (id, secret) = &self.keys;
        std::fs::create_dir_all(sandbox.path("home/.aws")).unwrap();
        let profile = format!("[team]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        std::fs::write(sandbox.path("home/.aws/credentials"), profile).unwrap();
        format!("s3://cache/{prefix}?endpoint={}&profile=team", self.endpoint())
    }

    /// The bucket as a binary cache.
    pub(crate) fn url(&self) -> String {
        format!("s3://cache?endpoint={}", self.endpoint())
    }
}

impl Drop for BucketServer {
    fn drop(&mut self) {
        let _ = (self.server.kill(), self.server.wait());
    }
}
