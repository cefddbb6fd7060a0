package main

type versionCmd struct{}

func (c *versionCmd) Run(g *globals) error { panic("unwritten") }
