//! Environments made of a graph of packages, before and after changes.

use std::collections::{BTreeMap, BTreeSet};

use layerhold::nix::{Closure, ContentHash, PathInfo, Source, SourceError, StorePath, Visitor, WalkError};

pub(crate) struct Package {
    size: u64,
    pub(crate) is_root: bool,
    pub(crate) dependencies: Vec<String>,
}

pub(crate) type Graph = BTreeMap<String, Package>;

pub(crate) fn read_graph(text: &str) -> Graph {
    text.lines()
        .map(|line| {
            let mut words = line.split(' ').peekable();
            let name = words.next().unwrap().to_owned();
            let size = words.next().unwrap().strip_prefix("size=").unwrap().parse().unwrap();
            let is_root = words.next_if_eq(&"root").is_some();
            (name, Package { size, is_root, dependencies: words.map(str::to_owned).collect() })
        })
        .collect()
}

/// The graph of `text` again and again, all in one, with names of their own.
pub(crate) fn copies(text: &str, count: usize) -> Graph {
    let copy = |at: usize| {
        let renamed = move |name: &str| format!("{name}-copy{at}");
        read_graph(text).into_iter().map(move |(name, package)| {
            let dependencies = package.dependencies.iter().map(|name| renamed(name)).collect();
            (renamed(&name), Package { dependencies, ..package })
        })
    };
    (0..count).flat_map(copy).collect()
}

/// What `roots` need, themselves included.
fn needed<'a>(graph: &'a Graph, roots: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut pending: Vec<&str> = roots.into_iter().collect();
    while let Some(name) = pending.pop() {
        if found.insert(name) {
            pending.extend(graph[name].dependencies.iter().map(String::as_str));
        }
    }
    found
}

/// `changed` and all that depends on one of them.
fn with_dependents<'a>(graph: &'a Graph, changed: &[&'a str]) -> BTreeSet<&'a str> {
    let mut found: BTreeSet<&str> = changed.iter().copied().collect();
    loop {
        let before = found.len();
        for (name, package) in graph {
            if package.dependencies.iter().any(|dependency| found.contains(dependency.as_str())) {
                found.insert(name);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// One state of an environment: its roots, and how often packages have changed by now.
#[derive(Clone)]
pub(crate) struct State<'a> {
    graph: &'a Graph,
    pub(crate) roots: BTreeSet<&'a str>,
    /// How many new versions each has had.
    upgrades: BTreeMap<&'a str, u32>,
    /// How often each has changed, by itself or because something that it depends on has.
    changes: BTreeMap<&'a str, u32>,
}

impl<'a> State<'a> {
    /// With these roots, and no change yet.
    pub(crate) fn new(graph: &'a Graph, roots: impl IntoIterator<Item = &'a str>) -> Self {
        let roots = roots.into_iter().collect();
        Self { graph, roots, upgrades: BTreeMap::new(), changes: BTreeMap::new() }
    }

    /// With all roots that the graph has.
    pub(crate) fn whole(graph: &'a Graph) -> Self {
        Self::new(graph, graph.iter().filter(|(_, package)| package.is_root).map(|(name, _)| name.as_str()))
    }

    /// After a new version of each of these, at once.
    pub(crate) fn upgraded(&self, names: &[&'a str]) -> Self {
        let mut state = self.clone();
        names.iter().for_each(|&name| *state.upgrades.entry(name).or_default() += 1);
        with_dependents(self.graph, names).into_iter().for_each(|name| *state.changes.entry(name).or_default() += 1);
        state
    }

    /// With that root if it has been without, and without if it has been with it.
    pub(crate) fn toggled(&self, root: &'a str) -> Self {
        let mut state = self.clone();
        if !state.roots.remove(root) {
            state.roots.insert(root);
        }
        state
    }

    /// The packages in it.
    pub(crate) fn packages(&self) -> BTreeSet<&'a str> {
        needed(self.graph, self.roots.iter().copied())
    }

    fn store_path(&self, name: &str) -> StorePath {
        let version = 1 + self.changes.get(name).copied().unwrap_or(0);
        let digest = blake3::hash(format!("{name} {version}").as_bytes());
        StorePath::synthetic(digest.as_bytes(), &format!("{name}-{version}")).unwrap()
    }

    /// A size that a new version may well have: made from the name, so that each run measures the same.
    pub(crate) fn size(&self, name: &str) -> u64 {
        let size = self.graph[name].size;
        let changes = self.changes.get(name).copied().unwrap_or(0);
        let by = match changes {
            0 => return size,
            1 => blake3::hash(name.as_bytes()),
            more => blake3::hash(format!("{name} {more}").as_bytes()),
        };
        let by = u64::from(u16::from_le_bytes(*by.as_bytes().first_chunk().unwrap()));
        if self.upgrades.contains_key(name) { size * (950 + by % 101) / 1000 } else { size + by % 512 }
    }

    pub(crate) fn closure(&self) -> Closure {
        let infos = self.packages().into_iter().map(|name| {
            let path = self.store_path(name);
            let references = self.graph[name].dependencies.iter().map(|name| self.store_path(name)).collect();
            let info = PathInfo {
                content: ContentHash::Nar([0; 32]),
                nar_size: self.size(name),
                path: path.clone(),
                references,
            };
            (path, info)
        });
        let roots: Vec<_> = self.roots.iter().map(|name| self.store_path(name)).collect();
        Closure::compute(&Infos(infos.collect()), roots).unwrap()
    }
}

/// A source of path infos without any tree.
struct Infos(BTreeMap<StorePath, PathInfo>);

impl Source for Infos {
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        Ok(self.0.get(path).cloned())
    }

    fn walk(&self, path: &StorePath, _: &mut dyn Visitor) -> Result<(), WalkError> {
        Err(WalkError::Absent { path: path.to_absolute() })
    }
}
