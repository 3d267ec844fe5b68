package main

import (
	"archive/tar"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// imageFile is a file of the machine and its absolute path in the image.
type imageFile struct {
	source      string
	destination string
}

// accounts names the users that images run as; some programs look their own up.
const (
	accounts = "root:x:0:0:root:/:/sbin/nologin\n" +
		"tulle-proxy:x:1337:1337:tulle-proxy:/:/sbin/nologin\n" +
		"nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"
	groups = "root:x:0:\ntulle-proxy:x:1337:\nnonroot:x:65532:\n"
)

// epoch is the time of every entry: the bytes must not depend on when it runs.
var epoch = time.Unix(0, 0).UTC()

// layerWriter writes a layer; parent directories come by themselves, once each.
type layerWriter struct {
	tar  *tar.Writer
	made map[string]bool
}

// writeLayer writes the layer with the files, /tmp and the accounts, and returns
// its digest and its size in bytes.
func writeLayer(out io.Writer, files []imageFile) (digest string, size int64, err error) {
	hash := sha256.New()
	counter := &countingWriter{}
	layer := layerWriter{
		tar:  tar.NewWriter(io.MultiWriter(out, hash, counter)),
		made: map[string]bool{"/": true},
	}
	files = slices.SortedFunc(slices.Values(files), func(a, b imageFile) int {
		return cmp.Compare(a.destination, b.destination)
	})
	err = errors.Join(
		layer.directory("/tmp", 0o1777),
		layer.text("/etc/passwd", accounts),
		layer.text("/etc/group", groups),
	)
	for _, file := range files {
		err = errors.Join(err, layer.file(file))
	}
	if err = errors.Join(err, layer.tar.Close()); err != nil {
		return "", 0, fmt.Errorf("writing the layer: %w", err)
	}
	return "sha256:" + hex.EncodeToString(hash.Sum(nil)), counter.n, nil
}

func (l *layerWriter) directory(name string, mode int64) error {
	if l.made[name] {
		return nil
	}
	l.made[name] = true
	if err := l.directory(path.Dir(name), 0o755); err != nil {
		return err
	}
	return l.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: strings.TrimPrefix(name, "/") + "/", Mode: mode, ModTime: epoch,
	})
}

func (l *layerWriter) text(name, content string) error {
	return l.put(name, 0o644, int64(len(content)), strings.NewReader(content))
}

func (l *layerWriter) file(file imageFile) error {
	source, err := os.Open(file.source)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	return l.put(file.destination, 0o755, info.Size(), source)
}

func (l *layerWriter) put(name string, mode, size int64, content io.Reader) error {
	if err := l.directory(path.Dir(name), 0o755); err != nil {
		return err
	}
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: size, ModTime: epoch,
	}
	if err := l.tar.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(l.tar, content)
	return err
}

type countingWriter struct{ n int64 }

func (c *countingWriter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
