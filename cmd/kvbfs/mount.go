package main

type mountCmd struct{}

func (c *mountCmd) Run(g *globals) error { panic("unwritten") }
