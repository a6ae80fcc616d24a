//! What the catalog is asked, and what its answer says (flox: catalog-api-v1/openapi.json, `PackageGroups` and
//! `ResolvedPackageGroups`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::blob::canonical_json;
use crate::environment::{Basic, FromNixpkgs, System};
use crate::nix::StorePath;

/// Packages that a page must have: enough to tell one revision from others, and few enough for one question.
const MOST_PACKAGES: usize = 24;
/// What the package that is wanted is called among those of a group.
const WANTED: &str = "wanted";

/// Several groups of packages, of each of which all must be on one page of the catalog.
#[derive(Debug, Serialize)]
pub(super) struct Question {
    items: Vec<Group>,
}

#[derive(Debug, Serialize)]
struct Group {
    name: String,
    descriptors: Vec<Descriptor>,
}

/// A package as Flox describes it. Nothing is said against it: it is in use already.
#[derive(Debug, Serialize)]
struct Descriptor {
    install_id: String,
    attr_path: String,
    systems: [&'static str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    derivation: Option<String>,
    allow_broken: bool,
    allow_insecure: bool,
    allow_missing_builds: bool,
    allow_unfree: bool,
}

impl Question {
    /// Asks for what is wanted beside these packages, each attribute that it may be in a group of its own.
    pub(super) fn new(system: System, packages: &[FromNixpkgs], wanted: &[Basic]) -> Self {
        let descriptor = |install_id: String, attribute: &str, derivation: Option<String>| Descriptor {
            install_id,
            attr_path: attribute.to_owned(),
            systems: [system.as_str()],
            derivation,
            allow_broken: true,
            allow_insecure: true,
            allow_missing_builds: true,
            allow_unfree: true,
        };
        let group = |attribute: &&str| {
            let packages = packages.iter().take(MOST_PACKAGES).enumerate().map(|(at, package)| {
                descriptor(format!("package-{at}"), &package.attribute, Some(package.derivation.to_string()))
            });
            let wanted = descriptor(WANTED.to_owned(), attribute, None);
            Group { name: (*attribute).to_owned(), descriptors: packages.chain([wanted]).collect() }
        };
        Self { items: wanted.iter().flat_map(|wanted| wanted.attributes()).map(group).collect() }
    }

    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        canonical_json(self)
    }
}

/// What the catalog answered; what else it says is for people.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    items: Vec<Resolved>,
}

#[derive(Debug, Deserialize)]
struct Resolved {
    name: String,
    page: Option<Page>,
}

#[derive(Debug, Deserialize)]
struct Page {
    complete: bool,
    packages: Option<Vec<Package>>,
}

#[derive(Debug, Deserialize)]
struct Package {
    install_id: String,
    system: String,
    rev: String,
    outputs: Vec<Output>,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    store_path: String,
}

/// What was wanted, as far as the catalog has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Where it lies.
    pub paths: BTreeMap<Basic, StorePath>,
    /// The commits of nixpkgs that it is from, where these are others than the packages' own: there, too, the packages
    /// are what they are.
    pub other_revisions: BTreeMap<Basic, String>,
}

impl Answer {
    pub(super) fn parse(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }

    /// Of several attributes that serve, the first one from the packages' own `revision`, else the first one.
    pub(super) fn found(&self, system: System, revision: &str, wanted: &[Basic]) -> Found {
        let mut found = Found::default();
        for basic in wanted {
            let candidates = basic.attributes().iter().filter_map(|attribute| self.resolved(system, attribute));
            let Some((path, from)) = candidates.reduce(|best, next| match (best.1 == revision, next.1 == revision) {
                (false, true) => next,
                _ => best,
            }) else {
                continue;
            };
            found.paths.insert(*basic, path);
            if from != revision {
                found.other_revisions.insert(*basic, from.to_owned());
            }
        }
        found
    }

    /// The main output of the package with this attribute, and its revision.
    fn resolved(&self, system: System, attribute: &str) -> Option<(StorePath, &str)> {
        let page = self.items.iter().find(|item| item.name == attribute)?.page.as_ref().filter(|page| page.complete)?;
        let is_wanted = |package: &&Package| package.install_id == WANTED && package.system == system.as_str();
        let package = page.packages.as_ref()?.iter().find(is_wanted)?;
        let output = package.outputs.iter().find(|output| output.name == "out")?;
        Some((output.store_path.parse().ok()?, &package.rev))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const OURS: &str = "d407951447dcd00442e97087bf374aad70c04cea";

    fn packages() -> Vec<FromNixpkgs> {
        vec![FromNixpkgs {
            attribute: "hello".to_owned(),
            derivation: "/nix/store/gsnnaglyb9vpvqcgw3i4czy3n892smms-hello-2.12.3.drv".parse().unwrap(),
            revision: OURS.to_owned(),
        }]
    }

    /// An item of an answer, with what the real service says beside.
    fn item(attribute: &str, path: &str, revision: &str, complete: bool) -> Value {
        json!({
            "name": attribute, "candidate_pages": null, "messages": [],
            "page": {
                "page": 942779, "url": "", "messages": [], "complete": complete,
                "packages": [
                    { "install_id": "package-0", "system": "x86_64-linux", "rev": revision, "outputs": [] },
                    {
                        "catalog": "nixpkgs", "attr_path": attribute, "install_id": "wanted", "system": "x86_64-linux",
                        "rev": revision, "rev_count": 942779, "stabilities": ["unstable"], "cache_uri": null,
                        "outputs": [
                            { "name": "man", "store_path": "/nix/store/grqrsdiz8i9zbpdpsmsv1cx2rskq54ck-man" },
                            { "name": "out", "store_path": path },
                        ],
                    },
                ],
            },
        })
    }

    fn found(items: Value, wanted: &[Basic]) -> Found {
        let answer = Answer::parse(json!({ "items": items }).to_string().as_bytes()).unwrap();
        answer.found(System::X86_64Linux, OURS, wanted)
    }

    #[test]
    fn every_attribute_is_asked_for_beside_the_very_packages() {
        let question = Question::new(System::X86_64Linux, &packages(), &[Basic::Bash, Basic::Certificates]);
        let json: Value = serde_json::from_slice(&question.to_json().unwrap()).unwrap();
        let names: Vec<_> = json["items"].as_array().unwrap().iter().map(|item| &item["name"]).collect();
        assert_eq!(names, ["bashInteractive", "bash", "cacert"]);
        insta::assert_snapshot!(serde_json::to_string_pretty(&json["items"][2]).unwrap(), @r#"
        {
          "descriptors": [
            {
              "allow_broken": true,
              "allow_insecure": true,
              "allow_missing_builds": true,
              "allow_unfree": true,
              "attr_path": "hello",
              "derivation": "/nix/store/gsnnaglyb9vpvqcgw3i4czy3n892smms-hello-2.12.3.drv",
              "install_id": "package-0",
              "systems": [
                "x86_64-linux"
              ]
            },
            {
              "allow_broken": true,
              "allow_insecure": true,
              "allow_missing_builds": true,
              "allow_unfree": true,
              "attr_path": "cacert",
              "install_id": "wanted",
              "systems": [
                "x86_64-linux"
              ]
            }
          ],
          "name": "cacert"
        }
        "#);
    }

    #[test]
    fn the_packages_own_revision_is_preferred_and_another_one_is_named() {
        let interactive = "/nix/store/f15k3dpilmiyv6zgpib289rnjykgr1r4-bash-interactive-5.3p9";
        let plain = "/nix/store/vlfjhc9730i65q1xhzf51kzh58s9kxnp-bash-5.3p9";
        let wanted = [Basic::Bash];
        let both = |first, second| {
            found(
                json!([item("bashInteractive", interactive, first, true), item("bash", plain, second, true)]),
                &wanted,
            )
        };
        assert_eq!(both(OURS, OURS).paths[&Basic::Bash].to_string(), interactive);
        assert_eq!(both("another", OURS).paths[&Basic::Bash].to_string(), plain);
        let neither = both("another", "third");
        assert_eq!(neither.paths[&Basic::Bash].to_string(), interactive);
        assert_eq!(neither.other_revisions[&Basic::Bash], "another");
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let path = "/nix/store/f15k3dpilmiyv6zgpib289rnjykgr1r4-nss-cacert-3.115";
        let wanted = [Basic::Coreutils, Basic::Certificates];
        let items = json!([{ "name": "coreutils", "page": null }, item("cacert", path, OURS, false)]);
        assert_eq!(found(items, &wanted), Found::default());
        let items = json!([item("cacert", path, OURS, true), item("coreutils", "/no/store/path", OURS, true)]);
        assert_eq!(found(items, &wanted).paths.into_keys().collect::<Vec<_>>(), [Basic::Certificates]);
        assert!(Answer::parse(b"{\"detail\": \"no\"}").is_err());
    }
}
