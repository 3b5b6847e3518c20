//go:build !unix

package sdk

import "os"

// guardStdout does nothing where descriptors cannot be led elsewhere.
func guardStdout() (*os.File, error) { return os.Stdout, nil }
