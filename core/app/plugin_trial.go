package app

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/carillon-notify/carillon/plugins/plugintest"
)

// testPluginCommand examines a built plugin.
func testPluginCommand(out io.Writer) *cobra.Command {
	var trial plugintest.Trial
	var file string
	cmd := &cobra.Command{Use: "test PATH", Short: "Examine a plugin from outside, and report", Args: cobra.ExactArgs(1),
		Long: "Starts a plugin many times, with wrong settings too, kills it once, and reports what it does that it should not, or does not.\n" +
			"It delivers nothing: a message to --address, if that is given, asks to be checked and not delivered.",
		RunE: func(cmd *cobra.Command, args []string) error {
			trial.Path = args[0]
			if file != "" {
				var err error
				if trial.Settings, err = readSettings(file); err != nil {
					return err
				}
			}
			return plugintest.Command(cmd.Context(), trial, out)
		}}
	cmd.Flags().StringVar(&file, "settings", "", "a YAML or JSON file with the settings of a route")
	cmd.Flags().StringVar(&trial.Address, "address", "", "where a test message may go: an address of your own")
	return cmd
}

func readSettings(file string) (map[string]any, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	settings := map[string]any{}
	if err := yaml.Unmarshal(text, &settings); err != nil {
		return nil, errors.New("read the settings: " + file + " is no YAML or JSON with one object") // err could quote a secret
	}
	return settings, nil
}
