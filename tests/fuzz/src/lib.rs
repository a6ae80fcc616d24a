//! What must hold for any bytes: each of these reads some, says whether they were accepted, and panics where what was
//! accepted is not what it seems. Used by the fuzz targets, and by the ordinary tests on the files of `fixtures/fuzz`.

use std::path::Path;

use layerhold::environment::{Location, Lockfile, Manifest, System};
use layerhold::nix::{Skeleton, SkeletonRecorder, StorePath, read_nar};
use layerhold::substitute::NarInfo;

use self::nar_writer::NarWriter;

mod nar_writer;

/// A NAR has one form: what was read is written as the same bytes. Its skeleton is read back as it was.
pub fn nar(bytes: &[u8]) -> bool {
    let mut writer = NarWriter::default();
    let mut recorder = SkeletonRecorder { visitor: &mut writer, skeleton: Skeleton::default() };
    let read = read_nar(&mut &bytes[..], &mut recorder);
    let skeleton = recorder.skeleton;
    if let Err(error) = read {
        assert!(!error.to_string().is_empty());
        return false;
    }
    assert!(writer.finish() == bytes, "a NAR is written in another way than it was read");
    assert_eq!(Skeleton::from_bytes(&skeleton.to_bytes()), Some(skeleton));
    true
}

/// A narinfo says the same when it is written again with nothing but what was read of it.
pub fn narinfo(bytes: &[u8]) -> bool {
    // It is asked for by a path: by the one that it is about, if it is about one.
    let text = String::from_utf8_lossy(bytes);
    let about = text.lines().filter_map(|line| line.strip_prefix("StorePath:")?.trim().parse().ok()).next_back();
    let path: StorePath = about.unwrap_or_else(|| {
        StorePath::from_base_name("cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain").expect("it is a store path")
    });
    let narinfo = match NarInfo::parse(&path, bytes) {
        Ok(narinfo) => narinfo,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    assert_eq!(narinfo.info.path, path);
    assert!(!narinfo.info.references.contains(&path));
    // No key is trusted: only the path itself may vouch for its contents.
    let is_vouched_for = narinfo.check(&[]).is_ok();
    let references: Vec<_> = narinfo.info.references.iter().map(StorePath::base_name).collect();
    let again = format!(
        "StorePath: {path}\nURL: {}\nCompression: {}\nNarHash: {}\nNarSize: {}\nReferences: {}\n{}",
        narinfo.url,
        format!("{:?}", narinfo.codec).to_lowercase().replace("brotli", "br"),
        narinfo.info.content,
        narinfo.info.nar_size,
        references.join(" "),
        narinfo.file_size.map(|size| format!("FileSize: {size}\n")).unwrap_or_default(),
    );
    let again = NarInfo::parse(&path, again.as_bytes()).expect("what was read can be read again");
    assert_eq!((&again.info, &again.url, again.codec), (&narinfo.info, &narinfo.url, narinfo.codec));
    assert_eq!(again.file_size, narinfo.file_size);
    assert!(again.check(&[]).is_err(), "it has neither signatures nor a content address");
    assert!(!is_vouched_for || text.contains("CA:"));
    true
}

/// A lockfile's JSON is read as the same lockfile.
pub fn lockfile(bytes: &[u8]) -> bool {
    let lockfile = match Lockfile::parse(Path::new("manifest.lock"), bytes) {
        Ok(lockfile) => lockfile,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let _ = error.hint();
            return false;
        }
    };
    let json = lockfile.to_json();
    let again = Lockfile::parse(Path::new("manifest.lock"), &json).expect("what was read can be read again");
    assert_eq!(again.to_json(), json);
    assert_eq!(again.manifest, lockfile.manifest);
    let environment = Location::Dir("/project".into());
    for system in [System::X86_64Linux, System::Aarch64Linux] {
        match (lockfile.installed(system, &environment), again.installed(system, &environment)) {
            (Ok(installed), Ok(again)) => assert_eq!(format!("{installed:?}"), format!("{again:?}")),
            (Err(error), Err(again)) => {
                assert_eq!((error.to_string(), error.hint()), (again.to_string(), again.hint()))
            }
            (one, other) => panic!("{one:?} and {other:?} of the same lockfile"),
        }
    }
    true
}

/// A manifest means the same as TOML and as the JSON that a lockfile has.
pub fn manifest(bytes: &[u8]) -> bool {
    let manifest = match Manifest::parse(Path::new("manifest.toml"), bytes) {
        Ok(manifest) => manifest,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            let _ = error.hint();
            return false;
        }
    };
    let _ = manifest.needs_no_lockfile();
    let text = std::str::from_utf8(bytes).expect("TOML is UTF-8");
    let table: toml::Table = text.parse().expect("it was TOML before");
    // JSON has no dates and no infinity, and Flox's lockfiles have none either.
    if has_what_json_has_not(&toml::Value::Table(table.clone())) {
        return true;
    }
    let json = serde_json::json!({ "lockfile-version": 1, "manifest": table, "packages": [] });
    let lockfile = Lockfile::parse(Path::new("manifest.lock"), json.to_string().as_bytes());
    assert_eq!(lockfile.expect("a manifest can be locked").manifest, manifest);
    true
}

fn has_what_json_has_not(value: &toml::Value) -> bool {
    match value {
        toml::Value::Datetime(_) => true,
        toml::Value::Float(number) => !number.is_finite(),
        toml::Value::Array(values) => values.iter().any(has_what_json_has_not),
        toml::Value::Table(table) => table.values().any(has_what_json_has_not),
        _ => false,
    }
}
