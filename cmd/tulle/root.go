package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// defaultMeshNamespace is where the control plane is installed.
const defaultMeshNamespace = "tulle-system"

// app is what all commands share.
type app struct {
	name          string // as the user calls it: "tulle" or "kubectl tulle"
	flags         *genericclioptions.ConfigFlags
	meshNamespace string
	streams       genericiooptions.IOStreams
	now           func() time.Time
	// connect gives the cluster that the flags name.
	connect func() (*cluster, error)
}

// text puts the program's name into a help text.
func (a *app) text(s string) string {
	return strings.ReplaceAll(strings.Trim(s, "\n"), "{tulle}", a.name)
}

// newRoot makes the command line.
func newRoot(name string, streams genericiooptions.IOStreams) *cobra.Command {
	a := &app{name: name, flags: genericclioptions.NewConfigFlags(true), streams: streams, now: time.Now}
	a.flags.CacheDir, a.flags.DisableCompression = nil, nil // nothing here discovers
	a.connect = func() (*cluster, error) { return connect(a.flags, a.meshNamespace) }
	return a.root()
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "tulle",
		Short: "Ask the Tulle mesh what it does",
		Long: a.text(`
Tulle is a service mesh that drives stock Envoy sidecars. This command asks it:

  {tulle} check           is this cluster fit for the mesh; is the mesh healthy
  {tulle} install         install the mesh, or bring it up to this version
  {tulle} uninstall       remove it
  {tulle} restart         roll workloads that predate injection or have an old proxy
  {tulle} inject -f FILE  put the sidecar into manifests, without the webhook
  {tulle} preview -f FILE what objects would change, before they are applied
  {tulle} explain POD SVC is a call allowed, by which rule, and where does it go
  {tulle} status          which proxies are connected, and what each lacks
  {tulle} proxy POD       what the Envoy in a pod really has, and against what was sent
  {tulle} ca              show and rotate the certificate authority
  {tulle} bug-report      write an archive for a bug report, with no secret in it
  {tulle} version         what runs: this program, control plane, proxies

It speaks to the Kubernetes API server with your kubeconfig. install, uninstall,
restart, proxy log and ca rotate change something; all else reads. Exit codes: 0 healthy or
done, 1 error, 2 something lacks.`),
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: a.name},
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(a.streams.Out)
	root.SetErr(a.streams.ErrOut)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &advice{err, cmd.CommandPath() + " --help"}
	})
	a.flags.AddFlags(root.PersistentFlags())
	root.PersistentFlags().StringVar(&a.meshNamespace, "mesh-namespace", defaultMeshNamespace,
		"Namespace of the control plane")
	hideRareFlags(root.PersistentFlags())
	_ = root.RegisterFlagCompletionFunc("namespace", a.completeNamespaces)
	root.AddCommand(
		a.checkCommand(), a.installCommand(), a.uninstallCommand(), a.restartCommand(), a.injectCommand(),
		a.previewCommand(), a.explainCommand(), a.statusCommand(), a.proxyCommand(), a.caCommand(), a.bugReportCommand(),
		a.versionCommand(),
	)
	return root
}

// hideRareFlags keeps the help readable: every kubeconfig flag works, those
// that most people use are listed.
func hideRareFlags(flags *pflag.FlagSet) {
	common := map[string]bool{"namespace": true, "context": true, "kubeconfig": true, "as": true, "mesh-namespace": true}
	flags.VisitAll(func(f *pflag.Flag) {
		if !common[f.Name] {
			f.Hidden = true
		}
	})
}

// outputFlag adds -o to the command.
func outputFlag(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVarP(format, "output", "o", formatTable, "Format: "+strings.Join(formats(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats(), cobra.ShellCompDirectiveNoFileComp))
}

// checkFormat refuses an unknown format before any work is done.
func checkFormat(format string) error {
	for _, f := range formats() {
		if f == format {
			return nil
		}
	}
	return fmt.Errorf("unknown output format %q: want one of %s", format, strings.Join(formats(), ", "))
}
