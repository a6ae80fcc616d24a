// A re-implementation, for comparison, of how nix2container finds the digests of layers.
//
// Written from what is known of it, not copied: one layer after the other, all files of its store paths in a tree of
// names first, then Go's archive/tar into a pipe, whose other end is hashed. Called as
//
//	nix2container ROOT LAYERS
//
// with the layers in a JSON file: lists of store paths, the bottom one first; ROOT is what /nix/store lies in. Each
// layer's digest is printed, and the length of its archive.
package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// A name in a layer; of directories above store paths nothing else is known.
type node struct {
	source   string
	info     fs.FileInfo
	children map[string]*node
}

func (n *node) child(name string) *node {
	if n.children == nil {
		n.children = map[string]*node{}
	}
	if n.children[name] == nil {
		n.children[name] = &node{}
	}
	return n.children[name]
}

// All files of the store paths, by their names in the layer.
func read(root string, paths []string) (*node, error) {
	top := &node{}
	for _, path := range paths {
		err := filepath.Walk(root+path, func(file string, info fs.FileInfo, err error) error {
			if err != nil {
				return err
			}
			at := top
			for _, name := range strings.Split(strings.TrimPrefix(file[len(root):], "/"), "/") {
				at = at.child(name)
			}
			at.source, at.info = file, info
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return top, nil
}

func owned(header *tar.Header) *tar.Header {
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "root", "root"
	header.ModTime = time.Unix(1, 0)
	header.AccessTime, header.ChangeTime = time.Unix(0, 0), time.Unix(0, 0)
	return header
}

func (n *node) add(out *tar.Writer, name string) error {
	if n.info == nil {
		return out.WriteHeader(owned(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}))
	}
	target := ""
	if n.info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(n.source); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(n.info, target)
	if err != nil {
		return err
	}
	header.Name = name
	if err := out.WriteHeader(owned(header)); err != nil || !n.info.Mode().IsRegular() {
		return err
	}
	file, err := os.Open(n.source)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(out, file)
	return err
}

func (n *node) addChildren(out *tar.Writer, above string) error {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		path := filepath.Join(above, name)
		if err := n.children[name].add(out, path); err != nil {
			return err
		}
		if err := n.children[name].addChildren(out, path); err != nil {
			return err
		}
	}
	return nil
}

func archive(root string, paths []string, to io.Writer) error {
	top, err := read(root, paths)
	if err != nil {
		return err
	}
	out := tar.NewWriter(to)
	if err := top.addChildren(out, "/"); err != nil {
		return err
	}
	return out.Close()
}

func digest(root string, paths []string) (string, int64, error) {
	read, write := io.Pipe()
	go func() { write.CloseWithError(archive(root, paths, write)) }()
	hash := sha256.New()
	size, err := io.Copy(hash, read)
	return fmt.Sprintf("%x", hash.Sum(nil)), size, err
}

func run(root, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var layers [][]string
	if err := json.Unmarshal(text, &layers); err != nil {
		return err
	}
	for _, paths := range layers {
		digest, size, err := digest(root, paths)
		if err != nil {
			return err
		}
		fmt.Printf("sha256:%s %d\n", digest, size)
	}
	return nil
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
