// Package tools is a module of its own for what builds and checks the product
// and is no part of it, so that the product's go.mod stays lean: go.mod here
// pins the tools, generate.sh and verify.sh run them, apiref writes the API
// reference.
package tools
