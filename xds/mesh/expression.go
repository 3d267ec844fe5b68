package mesh

import (
	"fmt"
	"regexp/syntax"
)

// maxProgram is how many instructions a regular expression may compile to.
// Proxies refuse what has more than 1,000 (xds/bootstrap); the difference is
// for what RE2 counts otherwise than Go does.
const maxProgram = 500

// ExpressionProblem says what keeps proxies from taking a regular expression, or
// nothing. It compiles it as RE2 would: Go's has the same syntax
// (https://github.com/google/re2/wiki/Syntax). A proxy that is sent one that does not
// compile rejects everything that came with it.
func ExpressionProblem(text string) string {
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return fmt.Sprintf("this is not a regular expression in RE2 syntax: %v", err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return fmt.Sprintf("this regular expression does not compile: %v", err)
	}
	n := 0
	for _, i := range program.Inst {
		// RE2 compares bytes: each range beyond ASCII is an instruction at least.
		n += max(1, len(i.Rune)/2)
	}
	if n > maxProgram {
		return fmt.Sprintf("this regular expression compiles to %d instructions, and proxies take %d: write a shorter one, with smaller repetitions", n, maxProgram)
	}
	return ""
}
