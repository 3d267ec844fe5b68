// Package cmd holds the programs, and the test of what may import what.
package cmd
