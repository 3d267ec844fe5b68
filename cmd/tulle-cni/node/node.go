package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/tulle-mesh/tulle/cmd/tulle-cni/plugin"
)

// Node is a node's folders, as the agent's container sees them.
type Node struct {
	// Configurations is where container runtimes look for network
	// configurations, by default /etc/cni/net.d. Plugins is where they look for
	// the programs, by default /opt/cni/bin.
	Configurations string
	Plugins        string
	// Program is the file that is installed as the plugin.
	Program string

	// compared is the installed program when its bytes were last compared,
	// which are many.
	compared fs.FileInfo
}

// Install has the plugin in place, and returns what it changed, in words.
func (n *Node) Install() (changed []string, err error) {
	did, err := n.installProgram()
	if did != "" {
		changed = append(changed, did)
	}
	if err != nil {
		return changed, err
	}
	lists, err := n.lists()
	if err != nil {
		return changed, err
	}
	if len(lists) == 0 {
		return changed, fmt.Errorf("there is no network configuration in %s yet: the cluster's own network plugin writes it", n.Configurations)
	}
	did, err = edit(lists[0], with, "chained to")
	if did != "" {
		changed = append(changed, did)
	}
	if err != nil {
		return changed, err
	}
	// One that was the first until another came before it.
	more, err := removeFrom(lists[1:])
	return append(changed, more...), err
}

// Remove takes the plugin out of the node, and returns what it changed.
func (n *Node) Remove() (changed []string, err error) {
	lists, err := n.lists()
	if err != nil {
		return nil, err
	}
	changed, err = removeFrom(lists)
	if err != nil {
		return changed, fmt.Errorf("%w; the program stays, for a list that names it would keep pods from starting without it", err)
	}
	switch err := os.Remove(n.program()); {
	case err == nil:
		changed = append(changed, "removed "+n.program())
	case !errors.Is(err, fs.ErrNotExist):
		return changed, fmt.Errorf("removing the plugin: %w", err)
	}
	return changed, errors.Join(removeUnfinished(n.Configurations), removeUnfinished(n.Plugins))
}

// Installed reports what is missing of the plugin in the node.
func (n *Node) Installed() error {
	have, err := os.Stat(n.program())
	if err != nil {
		return fmt.Errorf("looking for the plugin: %w", err)
	}
	want, err := os.Stat(n.Program)
	if err != nil {
		return fmt.Errorf("looking at this program: %w", err)
	}
	if have.Size() != want.Size() {
		return fmt.Errorf("%s is another version", n.program())
	}
	lists, err := n.lists()
	if err != nil {
		return err
	}
	if len(lists) == 0 {
		return fmt.Errorf("there is no network configuration in %s", n.Configurations)
	}
	content, err := os.ReadFile(lists[0])
	if err != nil {
		return fmt.Errorf("reading a network configuration: %w", err)
	}
	list, err := elements(content)
	if err != nil {
		return fmt.Errorf("the network configuration %s: %w", lists[0], err)
	}
	if !slices.ContainsFunc(list, func(e element) bool { return e.ours }) {
		return fmt.Errorf("the network configuration %s does not list %s", lists[0], plugin.Type)
	}
	return nil
}

func (n *Node) program() string { return filepath.Join(n.Plugins, plugin.Type) }

func (n *Node) installProgram() (did string, err error) {
	const executable = 0o755
	info, err := os.Stat(n.program())
	if err == nil && n.compared != nil && os.SameFile(info, n.compared) &&
		info.ModTime().Equal(n.compared.ModTime()) && info.Size() == n.compared.Size() && info.Mode() == n.compared.Mode() {
		return "", nil
	}
	want, err := os.ReadFile(n.Program)
	if err != nil {
		return "", fmt.Errorf("reading the plugin: %w", err)
	}
	have, err := os.ReadFile(n.program())
	if err != nil || !bytes.Equal(have, want) || info == nil || info.Mode().Perm() != executable {
		if err := replace(n.program(), want, executable, nil); err != nil {
			return "", fmt.Errorf("installing the plugin: %w", err)
		}
		did = "installed " + n.program()
	}
	n.compared, err = os.Stat(n.program())
	return did, err
}

// lists are the network configurations in the order in which runtimes consider
// them, which is that of their names.
func (n *Node) lists() ([]string, error) {
	entries, err := os.ReadDir(n.Configurations) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("listing network configurations: %w", err)
	}
	var names []string
	for _, e := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) && !e.IsDir() {
			names = append(names, filepath.Join(n.Configurations, e.Name()))
		}
	}
	return names, nil
}

// removeFrom takes the plugin out of lists. What is no list never had it.
func removeFrom(lists []string) (changed []string, err error) {
	var problems []error
	for _, file := range lists {
		content, err := os.ReadFile(file)
		if err == nil && !bytes.Contains(content, []byte(plugin.Type)) {
			continue
		}
		did, err := edit(file, without, "unchained from")
		if did != "" {
			changed = append(changed, did)
		}
		problems = append(problems, err)
	}
	return changed, errors.Join(problems...)
}

// edit changes a configuration; the file's mode and owner stay.
func edit(file string, change func([]byte) ([]byte, error), verb string) (did string, err error) {
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // gone since it was listed, as is what it had of ours
	}
	if err != nil {
		return "", fmt.Errorf("looking at a network configuration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("the network configuration %s is a link: put a file in its place", file)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading a network configuration: %w", err)
	}
	after, err := change(before)
	if err != nil {
		return "", fmt.Errorf("the network configuration %s cannot be chained to: %w", file, err)
	}
	if bytes.Equal(before, after) {
		return "", nil
	}
	if err := replace(file, after, info.Mode().Perm(), info); err != nil {
		return "", fmt.Errorf("changing a network configuration: %w", err)
	}
	return verb + " " + file, nil
}
