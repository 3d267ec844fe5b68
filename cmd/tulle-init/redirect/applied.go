package redirect

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// Applied reports which direction is not redirected in the network namespace of
// the calling thread; nil if both are. It takes NET_ADMIN to ask. Which rules
// there are is not looked at: what Apply puts in place nobody else changes.
func Applied() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening a netlink socket to nftables: %w", explain(err))
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("listing the chains of nftables: %w", explain(err))
	}
	for _, name := range []string{chainOutbound, chainInbound} {
		i := slices.IndexFunc(chains, func(c *nftables.Chain) bool {
			return c.Table.Name == TableName && c.Name == name && c.Hooknum != nil
		})
		if i < 0 {
			return fmt.Errorf("there is no chain %s in the nftables table inet %s", name, TableName)
		}
		rules, err := conn.GetRules(chains[i].Table, chains[i])
		if err != nil {
			return fmt.Errorf("listing the rules of the chain %s: %w", name, explain(err))
		}
		if len(rules) == 0 {
			return fmt.Errorf("there are no rules in the chain %s of the nftables table inet %s", name, TableName)
		}
	}
	return nil
}
