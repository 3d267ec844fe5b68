// Command mkimage writes an OCI image archive of one layer, without docker.
//
//	mkimage -o echo.tar -name localhost/echo:dev -entrypoint /echo -user 65532:65532 bin/echo
//	mkimage ... bin/envoy=/usr/local/bin/envoy /lib64/ld-linux-x86-64.so.2
//
// Each argument is SOURCE=DESTINATION, or SOURCE for one that goes to the same
// absolute path, or below / if it is relative. The same files give the same
// bytes whenever and wherever it runs: no time, no owner and no host's name gets
// in. It prints the manifest's digest, which is what containerd lists an
// imported image by.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	var image imageSpec
	out := flag.String("o", "", "archive to write")
	flag.StringVar(&image.name, "name", "", "reference of the image, with a tag")
	flag.StringVar(&image.user, "user", "65532:65532", "UID:GID the image runs as unless it is told otherwise")
	flag.StringVar(&image.entrypoint, "entrypoint", "", "absolute path of the program")
	flag.Parse()
	for _, argument := range flag.Args() {
		image.files = append(image.files, parseFile(argument))
	}

	digest, err := writeArchive(*out, image)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
	fmt.Println(digest)
}

// parseFile reads SOURCE or SOURCE=DESTINATION.
func parseFile(argument string) imageFile {
	source, destination, given := strings.Cut(argument, "=")
	switch {
	case given:
	case filepath.IsAbs(source):
		destination = source
	default:
		destination = "/" + filepath.Base(source)
	}
	return imageFile{source: source, destination: filepath.Clean(destination)}
}
