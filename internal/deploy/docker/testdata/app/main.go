// Command app is what the images of the docker driver's tests hold.
package main

import (
	"fmt"
	"os"

	"mainstay.dev/mainstay/internal/deploy/deploytest"
)

func main() {
	deploytest.RunIfApp()
	fmt.Println("this image is for tests; start it with a command of deploytest.App")
	os.Exit(2)
}
