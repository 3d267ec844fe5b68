package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

// reference writes Markdown. Its writer keeps the first error, as bufio.Writer
// does, so that single writes need not look.
type reference struct{ out io.Writer }

func (r *reference) printf(format string, args ...any) { fmt.Fprintf(r.out, format, args...) }

func (r *reference) write(crds []apiextensionsv1.CustomResourceDefinition) {
	r.printf("# API reference\n\n")
	r.printf("<!-- Generated from config/v1alpha1 by `make generate`; do not edit. -->\n\n")
	r.printf("| kind | `kubectl get` | scope | what it is |\n| --- | --- | --- | --- |\n")
	for _, crd := range crds {
		names := crd.Spec.Names
		short := make([]string, len(names.ShortNames))
		for i, name := range names.ShortNames {
			short[i] = "`" + name + "`"
		}
		r.printf("| [%s](#%s) | %s | %s | %s |\n", names.Kind, strings.ToLower(names.Kind),
			strings.Join(short, ", "), crd.Spec.Scope, cell(firstSentence(rootSchema(crd).Description)))
	}
	r.printf("\n`kubectl get mesh` lists all of them. ")
	r.printf("In the tables, `[]` after a name means each entry of a list; **bold** fields are required.\n")
	for _, crd := range crds {
		r.kind(crd)
	}
}

func (r *reference) kind(crd apiextensionsv1.CustomResourceDefinition) {
	schema := rootSchema(crd)
	r.printf("\n## %s\n\n%s\n\n", crd.Spec.Names.Kind, paragraph(schema.Description))
	r.printf("`apiVersion: %s/%s`, `kind: %s`\n", crd.Spec.Group, crd.Spec.Versions[0].Name, crd.Spec.Names.Kind)
	for _, part := range []string{"spec", "status"} {
		if property, ok := schema.Properties[part]; ok {
			r.printf("\n### %s.%s\n\n", crd.Spec.Names.Kind, part)
			r.printf("| field | type | what it says |\n| --- | --- | --- |\n")
			r.fields("", property)
		}
	}
	var rules []string
	collectRules("", schema, &rules)
	if len(rules) > 0 {
		r.printf("\n### %s: what is refused\n\n", crd.Spec.Names.Kind)
		r.printf("%s", strings.Join(rules, ""))
	}
}

// fields writes a row for each field below schema, in the order of the
// alphabet, which is the only one that a CRD has.
func (r *reference) fields(prefix string, schema apiextensionsv1.JSONSchemaProps) {
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		property := schema.Properties[name]
		path := prefix + name
		shown := "`" + path + suffix(property) + "`"
		if slices.Contains(schema.Required, name) {
			shown = "**" + shown + "**"
		}
		r.printf("| %s | %s | %s |\n", shown, cell(typeName(property)), cell(describe(property)))
		if foreign(path) {
			continue
		}
		r.fields(path+suffix(property)+".", element(property))
	}
}

// foreign reports whether a field's type is Kubernetes' own, whose fields its
// own documentation describes.
func foreign(path string) bool { return path == "conditions" || strings.HasSuffix(path, ".resources") }

func rootSchema(crd apiextensionsv1.CustomResourceDefinition) apiextensionsv1.JSONSchemaProps {
	return *crd.Spec.Versions[0].Schema.OpenAPIV3Schema
}

// element returns the schema of a list's entries, and of anything else itself.
func element(schema apiextensionsv1.JSONSchemaProps) apiextensionsv1.JSONSchemaProps {
	if schema.Items != nil && schema.Items.Schema != nil {
		return *schema.Items.Schema
	}
	return schema
}

func suffix(schema apiextensionsv1.JSONSchemaProps) string {
	if schema.Type == "array" {
		return "[]"
	}
	return ""
}

func typeName(schema apiextensionsv1.JSONSchemaProps) string {
	switch {
	case schema.Type == "array":
		return "list of " + typeName(element(schema))
	case len(schema.Enum) > 0:
		values := make([]string, len(schema.Enum))
		for i, value := range schema.Enum {
			values[i] = "`" + strings.Trim(string(value.Raw), `"`) + "`"
		}
		return strings.Join(values, ", ")
	case schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil:
		return "map of " + typeName(*schema.AdditionalProperties.Schema)
	default:
		return schema.Type
	}
}

// describe returns a field's description with its default and bounds.
func describe(schema apiextensionsv1.JSONSchemaProps) string {
	parts := []string{paragraph(schema.Description)}
	if value := schema.Default; value != nil && string(value.Raw) != "{}" {
		parts = append(parts, fmt.Sprintf("Default: `%s`.", strings.Trim(string(value.Raw), `"`)))
		if string(value.Raw) == `""` {
			parts[len(parts)-1] = `Default: "".`
		}
	}
	switch {
	case schema.Minimum != nil && schema.Maximum != nil:
		parts = append(parts, fmt.Sprintf("From %.0f to %.0f.", *schema.Minimum, *schema.Maximum))
	case schema.MaxItems != nil:
		parts = append(parts, fmt.Sprintf("At most %d.", *schema.MaxItems))
	case schema.MaxProperties != nil:
		parts = append(parts, fmt.Sprintf("At most %d.", *schema.MaxProperties))
	}
	return strings.Join(parts, " ")
}

// collectRules adds a line for each sentence with which the API server refuses
// an object, in the order of the fields.
func collectRules(path string, schema apiextensionsv1.JSONSchemaProps, rules *[]string) {
	for _, rule := range schema.XValidations {
		at := strings.TrimPrefix(path, ".")
		if at == "" {
			at = "metadata"
		}
		*rules = append(*rules, fmt.Sprintf("- `%s`: %s\n", at, cell(rule.Message)))
	}
	if schema.Items != nil {
		collectRules(path+"[]", *schema.Items.Schema, rules)
	}
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		collectRules(path+"."+name, schema.Properties[name], rules)
	}
}

// paragraph joins the lines of a description.
func paragraph(text string) string { return strings.Join(strings.Fields(text), " ") }

// cell makes text fit for a cell of a Markdown table, with none of its
// characters taken for markup.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", ">", "&gt;", "*", `\*`).Replace(text)
}

func firstSentence(text string) string {
	text = paragraph(text)
	if end := strings.Index(text, ". "); end >= 0 {
		return text[:end+1]
	}
	return text
}
