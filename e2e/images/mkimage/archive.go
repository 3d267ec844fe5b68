package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// imageSpec says what is to be in the image.
type imageSpec struct {
	name       string // with a tag: localhost/tulled:dev
	user       string // UID:GID
	entrypoint string
	files      []imageFile
}

// descriptor is the content descriptor of the OCI image specification.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// imageConfig, manifest and index are the OCI documents of those names, with the
// fields that are used here.
type imageConfig struct {
	platform
	Created string          `json:"created"`
	Config  containerConfig `json:"config"`
	RootFS  rootFS          `json:"rootfs"`
}

type containerConfig struct {
	User       string
	Entrypoint []string
	Env        []string
	WorkingDir string
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

const (
	mediaTypeConfig   = "application/vnd.oci.image.config.v1+json"
	mediaTypeLayer    = "application/vnd.oci.image.layer.v1.tar"
	mediaTypeManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaTypeIndex    = "application/vnd.oci.image.index.v1+json"
)

// writeArchive writes the image as an OCI layout in a tar file, and returns the
// digest of its manifest. The file appears whole or not at all.
func writeArchive(out string, image imageSpec) (digest string, err error) {
	if err := image.check(out); err != nil {
		return "", err
	}
	layer, err := os.CreateTemp(filepath.Dir(out), ".layer-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, layer.Close(), os.Remove(layer.Name())) }()
	layerDigest, layerSize, err := writeLayer(layer, image.files)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", image.name, err)
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return "", err
	}

	temporary := out + ".new"
	file, err := os.Create(temporary)
	if err != nil {
		return "", err
	}
	digest, err = writeLayout(file, image, descriptor{MediaType: mediaTypeLayer, Digest: layerDigest, Size: layerSize}, layer)
	if err := errors.Join(err, file.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("writing %s: %w", temporary, err), os.Remove(temporary))
	}
	return digest, os.Rename(temporary, out)
}

func (image imageSpec) check(out string) error {
	switch {
	case out == "":
		return errors.New("-o: name the archive to write")
	case !strings.Contains(filepath.Base(image.name), ":"):
		return fmt.Errorf("-name %q: give a reference with a tag, as in localhost/echo:dev", image.name)
	case len(image.files) == 0:
		return fmt.Errorf("image %s: no files", image.name)
	}
	return nil
}

// writeLayout writes the layout's blobs and index around the layer.
func writeLayout(out io.Writer, image imageSpec, layer descriptor, content io.Reader) (digest string, err error) {
	here := platform{Architecture: runtime.GOARCH, OS: "linux"}
	config, configBytes, err := describe(mediaTypeConfig, imageConfig{
		platform: here,
		Created:  epoch.Format(time.RFC3339),
		Config: containerConfig{
			User:       image.user,
			Entrypoint: []string{image.entrypoint},
			Env:        []string{"PATH=/usr/local/bin:/usr/bin:/bin:/"},
			WorkingDir: "/",
		},
		RootFS: rootFS{Type: "layers", DiffIDs: []string{layer.Digest}},
	})
	if err != nil {
		return "", err
	}
	top, topBytes, err := describe(mediaTypeManifest, manifest{
		SchemaVersion: 2, MediaType: mediaTypeManifest, Config: config, Layers: []descriptor{layer},
	})
	if err != nil {
		return "", err
	}
	top.Platform = &here
	top.Annotations = map[string]string{
		// The first is containerd's, the second the specification's: a tag alone.
		"io.containerd.image.name":          image.name,
		"org.opencontainers.image.ref.name": image.name[strings.LastIndex(image.name, ":")+1:],
	}
	_, indexBytes, err := describe(mediaTypeIndex, index{
		SchemaVersion: 2, MediaType: mediaTypeIndex, Manifests: []descriptor{top},
	})
	if err != nil {
		return "", err
	}

	archive := layerWriter{tar: tar.NewWriter(out), made: map[string]bool{"/": true, "/blobs": true, "/blobs/sha256": true}}
	err = errors.Join(
		archive.text("/oci-layout", `{"imageLayoutVersion":"1.0.0"}`),
		archive.text("/index.json", string(indexBytes)),
		archive.text(blob(top), string(topBytes)),
		archive.text(blob(config), string(configBytes)),
		archive.put(blob(layer), 0o644, layer.Size, content),
		archive.tar.Close(),
	)
	return top.Digest, err
}

func blob(d descriptor) string { return "/blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }

// describe encodes a document and returns the descriptor that refers to it.
func describe(mediaType string, document any) (descriptor, []byte, error) {
	encoded, err := json.Marshal(document)
	if err != nil {
		return descriptor{}, nil, fmt.Errorf("encoding %s: %w", mediaType, err)
	}
	sum := sha256.Sum256(encoded)
	return descriptor{
		MediaType: mediaType,
		Digest:    "sha256:" + hex.EncodeToString(sum[:]),
		Size:      int64(len(encoded)),
	}, encoded, nil
}
