package ca

import (
	"context"
	"errors"
)

// The errors of a Store that mean something to the authority; any other means
// that the store cannot be reached.
var (
	// ErrNotFound says that nothing is stored.
	ErrNotFound = errors.New("no authority is stored")
	// ErrExists says that another replica created it first.
	ErrExists = errors.New("an authority is stored already")
	// ErrConflict says that another replica updated it first.
	ErrConflict = errors.New("the stored authority has changed")
)

// Store keeps the authority's material where all replicas find it. Whoever
// writes first wins.
type Store interface {
	// Load returns what is stored, or ErrNotFound.
	Load(ctx context.Context) (Stored, error)
	// Create stores the first material, or returns ErrExists. It returns what
	// is stored then, with its revision.
	Create(ctx context.Context, s Stored) (Stored, error)
	// Update replaces the revision that s has, or returns ErrConflict or
	// ErrNotFound.
	Update(ctx context.Context, s Stored) (Stored, error)
	// Watch sends a value after each change, a deletion included, until the
	// context ends or the connection breaks; then it closes the channel. Changes
	// that come fast may be told once.
	Watch(ctx context.Context) (<-chan struct{}, error)
}
