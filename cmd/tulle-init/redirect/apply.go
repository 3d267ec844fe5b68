package redirect

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// TableName is the name of the table, of family inet, that Apply owns.
const TableName = "tulle"

// Apply puts the redirection in place in the network namespace of the calling
// thread. It replaces the table of an earlier call in the same transaction, so
// that there is no moment without one, and on failure nothing has changed.
func Apply(c Config) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("redirecting a pod's traffic: %w", err)
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening a netlink socket to nftables: %w", explain(err))
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}
	// Adding first makes the deletion succeed whether there was one or not.
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	b := &builder{conn: conn, table: table}
	b.outbound(c)
	b.inbound(c)
	if b.err != nil {
		return fmt.Errorf("building the nftables table inet %s: %w", TableName, b.err)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("replacing the nftables table inet %s: %w", TableName, explain(err))
	}
	return nil
}

// explain says what an operator can do about an error of the kernel.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the container needs the capability NET_ADMIN, which namespaces of the pod security levels baseline and restricted refuse", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w: the node's kernel needs nftables with inet NAT (Linux 5.2 or newer; modules nft_chain_nat, nft_redir, nft_fib_inet)", err)
	default:
		return err
	}
}
