package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tulle-mesh/tulle/cmd/tulle-cni/plugin"
)

// entry is the plugin in a list of plugins. The capabilities are what it asks
// the container runtime for: the pod's annotations, and its resolvers.
const entry = `{"type": "` + plugin.Type + `", "capabilities": {"` + plugin.CapabilityAnnotations + `": true, "` + plugin.CapabilityDNS + `": true}}`

// element is one plugin of a list, as a part of the text.
type element struct {
	start, end int // content[start:end] is the plugin's object
	ours       bool
}

// with adds the plugin to the end of a configuration list, or brings an older
// entry of it up to date where it stands. The text is the same otherwise, byte
// for byte.
func with(content []byte) ([]byte, error) {
	list, err := elements(content)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errors.New("it lists no plugin to be chained to")
	}
	for i, e := range list {
		if e.ours && i == 0 {
			return nil, errors.New("the plugin stands first in it, with nothing that makes a network before it")
		}
		if e.ours {
			return splice(content, e.start, e.end, entry), nil
		}
	}
	end := list[len(list)-1].end
	return splice(content, end, end, ", "+entry), nil
}

// without takes the plugin out of a configuration list, with the comma before
// it. What [with] added it takes away to the byte.
func without(content []byte) ([]byte, error) {
	list, err := elements(content)
	if err != nil {
		return nil, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		switch {
		case !list[i].ours:
		case i > 0:
			content = splice(content, list[i-1].end, list[i].end, "")
		case len(list) > 1:
			content = splice(content, list[0].start, list[1].start, "")
		default:
			content = splice(content, list[0].start, list[0].end, "")
		}
	}
	return content, nil
}

// splice replaces a part of a text.
func splice(content []byte, start, end int, by string) []byte {
	return bytes.Join([][]byte{content[:start], []byte(by), content[end:]}, nil)
}

// elements finds the plugins of a network configuration list (CNI
// specification 1.1.0, section 1).
func elements(content []byte) ([]element, error) {
	if !json.Valid(content) {
		return nil, errors.New("it is not JSON")
	}
	d := json.NewDecoder(bytes.NewReader(content))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	var found []element
	seen := false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("reading it: %w", err)
		}
		if key != "plugins" {
			var other json.RawMessage
			if err := d.Decode(&other); err != nil {
				return nil, fmt.Errorf("reading its %v: %w", key, err)
			}
			continue
		}
		if seen {
			return nil, errors.New("it has plugins twice")
		}
		seen = true
		if found, err = plugins(d); err != nil {
			return nil, err
		}
	}
	if !seen {
		return nil, errors.New("it is no list of plugins")
	}
	return found, nil
}

func plugins(d *json.Decoder) ([]element, error) {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.New("its plugins are no list")
	}
	var found []element
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, fmt.Errorf("reading its plugins: %w", err)
		}
		var p struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(raw, &p); err != nil {
			return nil, fmt.Errorf("reading its plugin %d: %w", len(found), err)
		}
		end := int(d.InputOffset())
		found = append(found, element{start: end - len(raw), end: end, ours: p.Type == plugin.Type})
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("reading its plugins: %w", err)
	}
	return found, nil
}
