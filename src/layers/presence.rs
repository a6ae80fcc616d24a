//! Which blobs repositories have, as the layer store remembers it: good for a day.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::blob::Digest;

/// Registries tidy up at night; who asks once a day hardly notices.
const GOOD_FOR: Duration = Duration::from_secs(24 * 3600);

/// What is remembered under which key of these blobs: since when they are there, or that they are not.
pub(super) fn entries(repository: &str, blobs: &[Digest], since: Option<SystemTime>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let since = since.map_or(0, |since| since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    let entry = |blob: &Digest| (format!("{repository} {blob}").into_bytes(), since.to_le_bytes().to_vec());
    blobs.iter().map(entry).collect()
}

/// The repositories with the blobs that they are remembered to have.
pub(super) fn recalled(remembered: &HashMap<Vec<u8>, Vec<u8>>, now: SystemTime) -> BTreeMap<String, BTreeSet<Digest>> {
    let mut repositories: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
    for (key, since) in remembered {
        let since = <[u8; 8]>::try_from(since.as_slice()).map_or(0, u64::from_le_bytes);
        let is_good = now.duration_since(UNIX_EPOCH + Duration::from_secs(since)).is_ok_and(|age| age < GOOD_FOR);
        let parsed = std::str::from_utf8(key).ok().and_then(|key| key.split_once(' '));
        let parsed = parsed.and_then(|(repository, blob)| Some((repository, blob.parse().ok()?)));
        if let (true, Some((repository, blob))) = (is_good, parsed) {
            repositories.entry(repository.to_owned()).or_default().insert(blob);
        }
    }
    repositories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_remembered_for_a_day_and_forgotten_when_it_is_gone() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let mut remembered: HashMap<_, _> = entries("registry.example/app", &[a, b], Some(now)).into_iter().collect();
        let known = recalled(&remembered, now + Duration::from_secs(3600));
        assert_eq!(known, BTreeMap::from([("registry.example/app".to_owned(), BTreeSet::from([a, b]))]));
        remembered.extend(entries("registry.example/app", &[a], None));
        assert_eq!(recalled(&remembered, now)["registry.example/app"], BTreeSet::from([b]));
        assert!(recalled(&remembered, now + GOOD_FOR).is_empty());
        assert!(recalled(&HashMap::from([(b"nonsense".to_vec(), vec![1])]), now).is_empty());
    }
}
