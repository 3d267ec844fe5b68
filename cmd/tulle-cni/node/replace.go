package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// unfinished are files that are being written. Runtimes pass over them.
const unfinished = ".tulle-cni-*.unfinished"

// replace writes a file that appears whole or not at all. It has the owner of
// the file that it replaces, if one is given.
func replace(file string, content []byte, mode fs.FileMode, owner fs.FileInfo) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), unfinished)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), chown(f, owner), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func chown(f *os.File, owner fs.FileInfo) error {
	if owner == nil {
		return nil
	}
	stat, ok := owner.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == os.Geteuid() && int(stat.Gid) == os.Getegid() {
		return nil
	}
	return f.Chown(int(stat.Uid), int(stat.Gid))
}

// removeUnfinished removes what was being written when a process was killed.
func removeUnfinished(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, unfinished))
	if err != nil {
		return fmt.Errorf("looking for unfinished files: %w", err)
	}
	var problems []error
	for _, f := range files {
		problems = append(problems, os.Remove(f))
	}
	return errors.Join(problems...)
}
