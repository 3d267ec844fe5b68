package translate

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/xds/mesh"
)

// The expression of a condition has no bound of its own: what the API lets in is taken, also
// where each letter becomes ten of the expression's.
func TestTheLargestConditionOnHeadersIsTranslated(t *testing.T) {
	var c mesh.Condition
	for h := range 8 {
		header := mesh.HeaderCondition{Name: strings.Repeat("h", 63) + fmt.Sprint(h)}
		for v := range 16 {
			header.Values = append(header.Values, strings.Repeat("\U0001f980", 254)+fmt.Sprintf("%02d", v))
		}
		c.Headers = append(c.Headers, header)
	}
	_, expression, possible := known{http: true}.condition(c, true)
	if !possible || parsed(expression).GetCallExpr() == nil {
		t.Errorf("nothing is made of an expression of %d bytes", len(expression))
	}
}
