package node

import (
	"context"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/go-logr/logr"
)

const (
	// settle is how long changes are let come together.
	settle = 50 * time.Millisecond
	// look is how often the folders are looked at without being told to.
	look = 5 * time.Second
)

// Keep has the plugin in place until the context ends: whoever writes the node's
// network configuration anew does not know of it.
func (n *Node) Keep(ctx context.Context, log logr.Logger) {
	events := n.watch(ctx, log)
	tick := time.NewTicker(look)
	defer tick.Stop()
	var said string
	for {
		changed, err := n.Install()
		for _, did := range changed {
			log.Info("plugin " + did)
		}
		switch {
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			log.Error(err, "the plugin is not in place; trying again")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-events:
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
		}
	}
}

// watch reports that something changed. Without inotify, of which Linux gives a
// user so many instances and no more, nothing is reported.
func (n *Node) watch(ctx context.Context, log logr.Logger) <-chan struct{} {
	changes := make(chan struct{}, 1)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Error(err, "cannot watch the node's folders; looking at them from time to time")
		return changes
	}
	for _, dir := range []string{n.Configurations, n.Plugins} {
		if err := w.Add(dir); err != nil {
			log.Error(err, "cannot watch a folder; looking at it from time to time", "folder", dir)
		}
	}
	go func() {
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case err := <-w.Errors: // one of them is that there were too many events
				log.V(1).Info("changes of the node's folders may have been missed; looking at them", "why", err)
			case _, ok := <-w.Events:
				if !ok {
					return
				}
			}
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	}()
	return changes
}
