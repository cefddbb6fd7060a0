package main

type detachCmd struct{}

func (c *detachCmd) Run(g *globals) error { panic("unwritten") }
