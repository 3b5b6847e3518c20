// Command deploy checks the files of deploy/ against their own formats: the Dockerfile by BuildKit's parser, the
// compose file by the reference implementation with its schema, Kubernetes's by the API's own types, strictly.
// None of it is run: no image is built and no cluster is asked.
//
//	go run -C .ci/tools/deploy . ../../../deploy
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/yaml"
)

func main() {
	dir := os.Args[1]
	err := errors.Join(dockerfile(filepath.Join(dir, "Dockerfile")), compose(filepath.Join(dir, "compose")), kubernetes(filepath.Join(dir, "kubernetes")))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// dockerfile reads every stage and instruction, and that each COPY --from names a stage.
func dockerfile(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	tree, err := parser.Parse(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	stages, _, err := instructions.Parse(tree.AST, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	known := map[string]bool{}
	n := 0
	for _, s := range stages {
		for _, c := range s.Commands {
			n++
			if from, ok := c.(*instructions.CopyCommand); ok && from.From != "" && !known[from.From] {
				return fmt.Errorf("%s: COPY --from=%s names no stage above it", file, from.From)
			}
		}
		known[s.Name] = true
	}
	fmt.Printf("Dockerfile: %d stages, %d instructions\n", len(stages), n)
	return nil
}

// compose loads the project as `docker compose config` does, schema and references included.
func compose(dir string) error {
	o, err := cli.NewProjectOptions([]string{filepath.Join(dir, "compose.yaml")}, cli.WithEnvFiles(filepath.Join(dir, "example.env")), cli.WithDotEnv)
	if err != nil {
		return err
	}
	p, err := o.LoadProject(context.Background())
	if err != nil {
		return fmt.Errorf("compose.yaml: %w", err)
	}
	for _, s := range p.Services {
		for _, v := range s.Volumes {
			if v.Type == "bind" {
				if _, err := os.Stat(v.Source); err != nil {
					return fmt.Errorf("compose.yaml: service %s: %w", s.Name, err)
				}
			}
		}
	}
	fmt.Printf("compose.yaml: services %s\n", strings.Join(p.ServiceNames(), ", "))
	return nil
}

// kubernetes decodes every object strictly: a field that its type has not, or has twice, is an error.
func kubernetes(dir string) error {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, policyv1.AddToScheme, autoscalingv2.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err != nil {
		return err
	}
	var k types.Kustomization
	if err := yaml.UnmarshalStrict(text, &k); err != nil {
		return fmt.Errorf("kustomization.yaml: %w", err)
	}
	var errs []error
	for _, name := range append([]string{"secret.example.yaml"}, k.Resources...) {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
		for {
			one, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			_, kind, err := decoder.Decode(one, nil, nil)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
				continue
			}
			fmt.Printf("%s: %s %s\n", name, kind.GroupVersion(), kind.Kind)
		}
	}
	return errors.Join(errs...)
}
