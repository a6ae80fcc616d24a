//! One suite for every [`Source`]: the same tree gives the same nodes, in the same order, with the same errors.

use std::collections::BTreeSet;
use std::io;

use proptest::prelude::*;
use rstest::rstest;

use super::testing::{Model, REGISTERED, TestStore, model, nar, record, register, store_path};
use super::{
    ContentHash, EntryKind, Glimpse, MemoryNode, MemoryStore, MemoryTree, Node, Source, StorePath, TreeListing,
    WalkError,
};

/// A source under test, with the tree in it.
struct Subject {
    name: &'static str,
    source: Box<dyn Source>,
    path: StorePath,
    /// For as long as the source reads it.
    _store: Option<TestStore>,
}

/// The same tree in every kind of source. It refers to `other` (also there) and, as far as a source can know, itself.
fn subjects(tree: &MemoryTree, other: &StorePath) -> Vec<Subject> {
    let mut memory = MemoryStore::new();
    let path = memory.add("subject", tree.clone(), BTreeSet::from([other.clone()])).unwrap();
    let on_disk = |registered: bool| {
        let store = TestStore::new();
        store.write(&path, tree);
        store.write(other, &MemoryTree::new());
        if registered {
            let database = store.database();
            register(&database, other, Some(96), &[]);
            register(&database, &path, None, &[other, &path]);
        }
        store
    };
    let (with, without) = (on_disk(true), on_disk(false));
    vec![
        Subject { name: "memory", source: Box::new(memory), path: path.clone(), _store: None },
        Subject { name: "database", source: Box::new(with.open()), path: path.clone(), _store: Some(with) },
        Subject { name: "directory", source: Box::new(without.open()), path, _store: Some(without) },
    ]
}

fn other() -> StorePath {
    store_path('7', "other")
}

/// Trees that are each special in a way.
fn special() -> Vec<Model> {
    let other = other().to_string().into_bytes();
    let file = |executable, contents: &[u8]| Model::Leaf(MemoryNode::Regular { executable, contents: contents.into() });
    let directory = |entries: Vec<(&[u8], Model)>| {
        Model::Directory(entries.into_iter().map(|(name, entry)| (name.to_vec(), entry)).collect())
    };
    vec![
        file(false, b""),
        file(true, &other),
        Model::Leaf(MemoryNode::Symlink(other.clone().into())),
        directory(vec![]),
        directory(vec![
            (b"a", directory(vec![(b"z", file(true, b"1")), (b"\xff", file(false, &[9; 100_000]))])),
            (b"a-b", file(false, &other)),
            (b"a.b", Model::Leaf(MemoryNode::Symlink(vec![b'x'; 4000].into()))),
            (b"empty", directory(vec![])),
            (b" ", file(false, b"")),
        ]),
    ]
}

fn check(model: &Model) {
    let expected = model.nodes();
    for Subject { name, source, path, .. } in subjects(&model.tree(), &other()) {
        assert_eq!(record(&*source, &path).unwrap(), expected, "{name}");
        let whole = TreeListing::of_walk(|visitor| source.walk(&path, visitor)).unwrap();
        assert_eq!(whole.iter().count(), expected.len(), "{name}");
        let directories = whole.iter().filter(|(at, kind)| at.is_empty() || **kind == EntryKind::Directory);
        for (at, kind) in directories {
            match source.glimpse(&path, at).unwrap() {
                Glimpse::Whole(seen) => assert_eq!(seen, whole, "{name}"),
                Glimpse::Level(seen) => {
                    assert_eq!(seen.get(at), Some(kind), "{name}");
                    assert!(seen.iter().all(|(at, kind)| whole.get(at) == Some(kind)), "{name}");
                    assert!(seen.children(at).eq(whole.children(at)), "{name}");
                }
            }
        }
        for shown in &expected {
            if let MemoryNode::Regular { contents, .. } = &shown.node {
                assert!(source.read(&path, &shown.path).unwrap() == **contents, "{name}");
            }
        }
        let info = source.path_info(&path).unwrap().unwrap();
        assert_eq!(info.path, path, "{name}");
        assert_eq!(info.nar_size, nar(&*source, &path).len() as u64, "{name}");
        assert!(!info.references.contains(&path), "{name}");
    }
}

#[test]
fn every_source_shows_the_same_nodes_in_nar_order() {
    special().iter().for_each(check);
}

#[test]
fn an_unvouched_tree_has_the_same_hash_on_disk_and_in_memory() {
    for model in special() {
        let hashes: Vec<_> = subjects(&model.tree(), &other())
            .iter()
            .map(|subject| subject.source.path_info(&subject.path).unwrap().unwrap().content)
            .collect();
        assert!(matches!(hashes[0], ContentHash::Tree(_)));
        assert_eq!(hashes, [hashes[0], REGISTERED, hashes[0]]);
    }
}

#[test]
fn every_source_knows_the_references() {
    for model in special().into_iter().skip(1).filter(|model| !matches!(model, Model::Directory(e) if e.is_empty())) {
        for Subject { name, source, path, .. } in subjects(&model.tree(), &other()) {
            assert_eq!(source.path_info(&path).unwrap().unwrap().references, BTreeSet::from([other()]), "{name}");
        }
    }
}

#[test]
fn what_a_source_does_not_have_is_absent() {
    let absent = store_path('0', "absent");
    for Subject { name, source, .. } in subjects(&MemoryTree::new(), &other()) {
        assert_eq!(source.path_info(&absent).unwrap(), None, "{name}");
        let mut seen = 0;
        let walked = source.walk(&absent, &mut |_: &[u8], _: Node<'_>| {
            seen += 1;
            Ok(())
        });
        assert!(matches!(walked, Err(WalkError::Absent { path }) if path == absent.to_absolute()), "{name}");
        assert_eq!(seen, 0, "{name}");
    }
}

#[rstest]
#[case::at_the_root(0)]
#[case::at_a_directory(1)]
#[case::at_a_file(3)]
#[case::at_a_link(5)]
fn a_visitors_error_ends_the_walk_and_comes_back_as_it_was(#[case] at: usize) {
    let mut tree = MemoryTree::new();
    tree.file(b"a/b/c", false, *b"c").unwrap();
    tree.directory(b"d").unwrap();
    tree.symlink(b"e", *b"f").unwrap();
    for Subject { name, source, path, .. } in subjects(&tree, &other()) {
        let mut seen = 0;
        let walked = source.walk(&path, &mut |_: &[u8], node: Node<'_>| {
            seen += 1;
            if let Node::Regular { contents, .. } = node {
                contents.read_to_end(&mut Vec::new())?;
            }
            if seen > at { Err(io::Error::other("the disk is full")) } else { Ok(()) }
        });
        let Err(WalkError::Visitor(error)) = walked else { panic!("{name}: {walked:?}") };
        assert_eq!(error.to_string(), "the disk is full", "{name}");
        assert_eq!(seen, at + 1, "{name}");
    }
}

#[test]
fn contents_may_be_left_unread_or_read_in_part() {
    let mut tree = MemoryTree::new();
    tree.file(b"a", false, [1; 1000]).unwrap();
    tree.file(b"b", false, [2; 1000]).unwrap();
    for Subject { name, source, path, .. } in subjects(&tree, &other()) {
        let mut parts = Vec::new();
        source
            .walk(&path, &mut |path: &[u8], node: Node<'_>| {
                if let Node::Regular { contents, .. } = node
                    && path == b"b"
                {
                    let mut part = [0; 10];
                    contents.read_exact(&mut part)?;
                    parts.push(part);
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(parts, [[2; 10]], "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_is_the_same_from_every_source(model in model()) {
        check(&model);
    }

    #[test]
    fn a_trees_hash_does_not_depend_on_the_number_of_threads(model in model()) {
        let store = TestStore::new();
        let path = store_path('1', "tree");
        store.write(&path, &model.tree());
        let info = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| store.open().path_info(&path).unwrap().unwrap())
        };
        let one = info(1);
        prop_assert_eq!(&info(4), &one);
        prop_assert_eq!((one.content, one.nar_size), model.tree().content());
    }
}
